/* Views that depend on the record alone: pictures, sources, what halting costs. */
(function (root) {
  "use strict";
  const odn = (root.odn = root.odn || {});
  const { make, table, details } = odn;

  function pictures(entry) {
    const found = entry.pictures || {}, stops = entry.stops;
    const own = entry.id === "own" ? "A report has no images. Run odn report --html RUN where the data are: its page draws them." : null;
    const views = [];
    if (!found.early) views.push(make("p", {}, own || found.missing || "This record has no images."));
    if (!stops) return views;
    const classes = (entry.report.data || {}).classes || [];
    const name = (label) => classes[label] || `class ${label}`;
    for (const kind of ["early", "late"]) {
      const title = kind === "early" ? "Stop early" : "Stop late";
      if (found.early) {
        const figures = stops[kind].map((one, place) => make("li", {},
          make("img", { src: found[kind][place], alt: `test image ${one.row}: ${name(one.label)}`, width: 64, height: 64 }),
          make("span", {}, `exit ${one.exit}: ${name(one.answer)}${one.answer === one.label ? "" : `, in truth ${name(one.label)}`}`)));
        views.push(make("h3", {}, title), make("ul", { class: "pictures" }, ...figures));
      }
    }
    const rows = ["early", "late"].flatMap((kind) => stops[kind].map((one) =>
      [`${kind}, image ${one.row}`, `exit ${one.exit}`, name(one.label), name(one.answer)]));
    const policy = stops.policy ? ` Policy: ${stops.policy.family}, setting ${Number(stops.policy.setting).toPrecision(3)}.` : "";
    if (stops.mean_exit_by_class) {
      const order = stops.mean_exit_by_class.map((exit, label) => [exit, label]).sort((a, b) => a[0] - b[0]);
      const cells = order.map(([exit, label]) => [name(label), exit.toFixed(2), String(stops.images_by_class[label])]);
      views.push(table("Mean exit by class, the earliest first", ["Class", "Mean exit", "Test images"], cells));
    }
    views.push(details("The images as a table",
      table(`The first test images that stop early and late, in the order of the split.${policy}`, ["Image", "Stops at", "Label", "Answer"], rows)));
    return views;
  }

  function sourceView(source) {
    const told = make("dl", { class: "source" });
    const say = (name, value) => value ? told.append(make("dt", {}, name), make("dd", {}, value)) : null;
    const code = (text) => (text ? make("code", {}, text) : null);
    say("File", code(source.file));
    say(source.command ? "Tests the claim" : "What it is", source.claim);
    say("Made by", code(source.command));
    if (source.commit) {
      const date = source.date ? ` of ${source.date}` : "", dirty = source.uncommitted_changes ? ", with changes that were not committed" : "";
      say("Commit", `${source.commit.slice(0, 12)}${date}${dirty}`);
    }
    const machine = source.environment || {};
    const parts = [machine.gpu || (machine.machine ? `CPU, ${machine.machine}, ${machine.cpu_count} cores` : null),
      machine.torch_threads ? `${machine.torch_threads} threads` : null, machine.system,
      machine.odn_hybrid ? `odn_hybrid ${machine.odn_hybrid}` : null, machine.python ? `Python ${machine.python}` : null, machine.torch ? `torch ${machine.torch}` : null,
      machine.timm ? `timm ${machine.timm}` : null];
    say("Machine", parts.filter(Boolean).join(", "));
    return make("div", {}, make("h3", {}, source.what), told);
  }

  function overheadViews(overheads) {
    if (!overheads.length) return [make("p", {}, "No record of this yet.")];
    return overheads.flatMap((one) => {
      const cells = one.rows.map((row) => [row.network, String(row.batch), row.pattern, row.survivors.join(", "),
        `${row.ratio.median.toFixed(3)} [${row.ratio.low.toFixed(3)}, ${row.ratio.high.toFixed(3)}]`,
        row.over === "over_plain" ? "plain network" : "its segments alone", `${row.limit.toFixed(2)}${row.met ? "" : ", missed"}`]);
      return [
        make("p", {}, `Time of the halting runtime as a ratio, on ${one.device}, ${odn.plural(one.threads, "thread")}; ` +
          `${one.met} of ${one.of} lie within their limits. Networks with random weights: this is about time, not accuracy.`),
        details("The measurements as a table", table(`Halting on ${one.device}, with 95 % intervals`,
          ["Network", "Batch", "Inputs that stop", "Inputs left", "Time, as a ratio", "Ratio to", "Limit"], cells)),
        sourceView(one.source)];
    });
  }

  const gain = (one) => (one ? `${one.median.toFixed(2)} x [${one.low.toFixed(2)}, ${one.high.toFixed(2)}]` : odn.NONE);

  /* All that was timed beside the three models, other libraries too, and what the record itself recommends. */
  function everythingTimed(comparison, batch) {
    const rows = ((comparison || {}).everything || {})[batch];
    if (!rows) return [];
    const cells = rows.map((row) => [row.name, odn.accuracyText(row.accuracy), odn.count(row.mean_macs), row.images_per_second.toFixed(0),
      row.p50.toPrecision(3), row.p99.toPrecision(3), gain(row.speedup), gain(row.dynamic_over)]);
    const caption = `${comparison.rounds} rounds of the same ${comparison.images} test images, models in turns; accuracy on all test images. ` +
      "Ratios are of throughput; above 1 in the last column the halting model of the answer is the faster. earlyon is another " +
      "library; nothing is promised of its accuracy.";
    const advice = comparison.recommendation && comparison.recommendation[batch];
    const said = advice && advice.reason ? make("p", { class: "help" }, `The record itself says, for ${odn.pointsText(comparison.points)}: ${advice.reason}.`) : null;
    return [said, details("Everything that was timed at this batch size", table(caption,
      ["Model", "Test accuracy, %", "MACs, mean", "Images a second", "p50, ms a call", "p99, ms a call", "Speed to full", "Dynamic to it"], cells))].filter(Boolean);
  }

  /* The halting model that was timed, in other runtimes; at the chosen batch size, or at all where it has none. */
  function exportedViews(exported, batch) {
    return exported.map((one) => {
      const sizes = one.batches[batch] ? [batch] : Object.keys(one.batches);
      const cells = sizes.flatMap((size) => one.batches[size].map((row) => [row.name, size, row.ms_per_image.toPrecision(3),
        gain(row.over_torch), row.same_exits === undefined || row.same_exits === null ? odn.NONE : odn.percent(row.same_exits, 2)]));
      return table(`Times on ${one.device}, speed as a ratio to torch in the same rounds; exits compared with torch on ` +
        `${one.images.toLocaleString("en")} test images. From the record ${one.record}. The promise does not speak of these ` +
        "runtimes: there it has to be earned again.", ["Runtime", "Batch", "ms an image", "Speed to torch", "Same exits"], cells);
    });
  }

  Object.assign(odn, { pictures, sourceView, overheadViews, everythingTimed, exportedViews });
})(typeof globalThis === "undefined" ? this : globalThis);
