/* Small helpers that make elements and tables; all text goes in as text, never as markup. */
(function (root) {
  "use strict";
  const odn = (root.odn = root.odn || {});
  const NONE = "-";

  function make(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  }

  let tables = 0;

  /* columns: headings, the first names the row; numbers stand right. The caption stands below, outside of what
     scrolls sideways, so that a phone shows all of it. */
  function table(caption, columns, rows, classes = []) {
    const head = make("tr", {}, ...columns.map((name, at) => make("th", { scope: "col", class: at ? "number" : "" }, name)));
    const body = rows.map((cells, at) =>
      make("tr", { class: classes[at] || "" }, ...cells.map((cell, place) =>
        place ? make("td", { class: "number" }, cell) : make("th", { scope: "row" }, cell))));
    const id = `caption-${(tables += 1)}`;
    const found = make("table", { "aria-labelledby": id }, make("thead", {}, head), make("tbody", {}, ...body));
    return make("div", {}, make("div", { class: "scroll", role: "region", tabindex: "0", "aria-labelledby": id }, found),
      make("p", { class: "help", id }, caption));
  }

  function details(summary, ...children) {
    return make("details", {}, make("summary", {}, summary), ...children);
  }

  function count(value) {
    if (value === null || value === undefined) return NONE;
    for (const [unit, size] of [["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]])
      if (value >= size * 0.9995) return `${(value / size).toPrecision(3)} ${unit}`;
    return value.toFixed(0);
  }

  const megabytes = (bytes) => (bytes === null || bytes === undefined ? NONE : (bytes / 1e6).toPrecision(3));

  function accuracy(found) {
    if (!found) return NONE;
    const digits = found.high - found.low < 0.01 ? 2 : 1;
    const [value, low, high] = [found.value, found.low, found.high].map((one) => (100 * one).toFixed(digits));
    return `${value} [${low}, ${high}]`;
  }

  Object.assign(odn, { make, table, details, count, megabytes, accuracyText: accuracy, NONE });
})(typeof globalThis === "undefined" ? this : globalThis);
