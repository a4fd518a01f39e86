/* Charts as SVG elements. Colours come from the style sheet; the figures stand in tables beside them. */
(function (root) {
  "use strict";
  const odn = (root.odn = root.odn || {});
  const NS = "http://www.w3.org/2000/svg";
  const HEIGHT = 320, LEFT = 46, RIGHT = 14, TOP = 14, BOTTOM = 42;
  const SHOWN_BELOW = 0.15; // accuracies further below the reference are left out
  const NUMBER_ROOM = 18;

  function draw(name, attributes = {}, children = []) {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    for (const child of children) node.append(child);
    return node;
  }

  const label = (text, x, y, more = {}) => draw("text", { x, y, class: "tick", ...more }, [text]);

  function frame(id, width, height, title, description) {
    return draw(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": `${id}-t ${id}-d`, class: "chart" },
      [draw("title", { id: `${id}-t` }, [title]), draw("desc", { id: `${id}-d` }, [description])]
    );
  }

  /* Round steps of an axis: about `count` of them within low..high. */
  function ticks(low, high, count = 5) {
    const raw = (high - low) / count || 1, size = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((one) => one * size).find((one) => one >= raw);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + 1e-9; at += step) found.push(Number(at.toFixed(10)));
    return found;
  }

  const trim = (value) => String(Number(value.toFixed(3)));

  function axes(svg, width, x, y, xTitle, yTitle) {
    for (const at of ticks(y.low, y.high)) {
      svg.append(draw("line", { x1: LEFT, x2: width - RIGHT, y1: y(at), y2: y(at), class: "grid" }));
      svg.append(label(trim(at), LEFT - 6, y(at) + 4, { "text-anchor": "end" }));
    }
    for (const at of ticks(x.low, x.high)) svg.append(label(trim(at), x(at), HEIGHT - BOTTOM + 16, { "text-anchor": "middle" }));
    svg.append(draw("line", { x1: LEFT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, class: "axis" }));
    svg.append(label(xTitle, (LEFT + width - RIGHT) / 2, HEIGHT - 6, { "text-anchor": "middle", class: "title" }));
    svg.append(label(yTitle, LEFT + 6, TOP + 10, { class: "title" }));
  }

  function scale(low, high, from, to) {
    const map = (value) => from + ((value - low) / (high - low || 1)) * (to - from);
    return Object.assign(map, { low, high });
  }

  function mark(kind, x, y) {
    if (kind === "static") return draw("path", { d: `M${x} ${y - 7}l7 12h-14z`, class: "mark static" });
    if (kind === "full") return draw("rect", { x: x - 6, y: y - 6, width: 12, height: 12, class: "mark full" });
    return draw("circle", { cx: x, cy: y, r: 7, class: `mark ${kind}` });
  }

  /* points: [{macs, accuracy}], of one kind; drawn as a line with dots. */
  function line(svg, kind, points, x, y) {
    const inside = points.filter((one) => one.accuracy.value * 100 >= y.low);
    if (!inside.length) return;
    const way = inside.map((one) => `${x(one.macs).toFixed(1)},${y(100 * one.accuracy.value).toFixed(1)}`).join(" ");
    svg.append(draw("polyline", { points: way, class: `line ${kind}` }));
    if (kind !== "exits") return;
    let [lastX, lastY] = [-Infinity, -Infinity];
    for (const one of inside) {
      const at = x(one.macs), ends = [one.accuracy.low, one.accuracy.high].map((end) => y(Math.max(100 * end, y.low)));
      svg.append(draw("line", { x1: at, x2: at, y1: ends[0], y2: ends[1], class: "whisker" }));
      svg.append(draw("circle", { cx: at, cy: y(100 * one.accuracy.value), r: 3.5, class: "dot" }));
      const height = y(100 * one.accuracy.value);
      if (at - lastX < NUMBER_ROOM && Math.abs(height - lastY) < NUMBER_ROOM) continue; // numbers would overlap
      svg.append(label(String(one.exit), at + 6, height + 14));
      [lastX, lastY] = [at, height];
    }
  }

  /* series: {exits, snell, confidence}: points; marks: [{kind, macs, accuracy}] of full, static, dynamic. */
  function accuracyChart(series, marks, width) {
    const all = [...Object.values(series).flat(), ...marks];
    if (!all.length) return null;
    const best = Math.max(...all.map((one) => one.accuracy.value));
    const floor = best - SHOWN_BELOW;
    const shown = all.filter((one) => one.accuracy.value >= floor);
    const low = Math.max(0, Math.min(...shown.map((one) => one.accuracy.low)) * 100 - 1);
    const high = Math.min(100, Math.max(...shown.map((one) => one.accuracy.high)) * 100 + 0.5);
    const far = Math.max(...all.map((one) => one.macs)) / 1e6;
    const x = scale(0, far * 1.04, LEFT, width - RIGHT), y = scale(low, high, HEIGHT - BOTTOM, TOP + 18);
    const across = Object.assign((macs) => x(macs / 1e6), { low: x.low, high: x.high });
    const svg = frame("chart-curve", width, HEIGHT, "Test accuracy against mean MACs an image",
      "Static exits, halting policies, and the three models of the answer. The table below has the figures.");
    axes(svg, width, x, y, "million MACs an image, on average", "test accuracy, %");
    for (const kind of ["confidence", "snell", "exits"]) if (series[kind]) line(svg, kind, series[kind], across, y);
    for (const one of marks) {
      if (one.accuracy.value * 100 < low) continue;
      svg.append(mark(one.kind, across(one.macs), y(100 * one.accuracy.value)));
    }
    return svg;
  }

  /* Where most exits are never taken, they are left out of the chart; the table has them. */
  function haltingChart(all, room) {
    const shares = all.length > 10 ? all.filter((one) => one.share > 0) : all;
    const most = Math.max(...shares.map((one) => one.share), 0.01);
    const rowHeight = 30, height = TOP + shares.length * rowHeight + 8;
    const svg = frame("chart-halting", room, height, "Share of test images that stop at each exit", "The table below has the figures.");
    shares.forEach((one, at) => {
      const top = TOP + at * rowHeight, length = (one.share / most) * (room - 130);
      svg.append(label(`exit ${one.exit}`, 58, top + 16, { "text-anchor": "end" }));
      svg.append(draw("rect", { x: 68, y: top + 2, width: Math.max(length, 1), height: rowHeight - 10, rx: 3, class: "bar" }));
      svg.append(label(odn.percent(one.share), 76 + length, top + 16));
    });
    return svg;
  }

  Object.assign(odn, { accuracyChart, haltingChart });
})(typeof globalThis === "undefined" ? this : globalThis);
