/* The page: controls, the views of one entry, and a report that the reader brings. */
(function () {
  "use strict";
  const { make, table, details, count, megabytes, accuracyText, pictures, sourceView, NONE } = odn;
  const held = globalThis.odnRecords || { entries: [], overheads: [] };
  const entries = [...held.entries];
  const at = (id) => document.getElementById(id);
  const wish = { entry: 0, device: null, batch: null, points: 1 };
  let shownAt = 0;
  const WORDS = { static: "Static", dynamic: "Dynamic", full: "Keep the full network" };
  const GROUPS = { own: "Your own" };

  function fill(select, options, chosen) {
    select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
    select.value = String(chosen);
    select.disabled = options.length < 2;
  }

  function fillEntries() {
    const groups = new Map();
    entries.forEach((entry, index) => {
      const name = GROUPS[entry.id] || entry.group || "Networks";
      if (!groups.has(name)) groups.set(name, make("optgroup", { label: name }));
      groups.get(name).append(make("option", { value: index }, entry.title));
    });
    at("entry").replaceChildren(...groups.values());
    at("entry").value = String(wish.entry);
  }

  function chooseEntry(index) {
    document.body.classList.remove("bare");
    wish.entry = index;
    const timed = entries[index].timed || [];
    wish.device = timed.length ? 0 : null;
    fillEntries();
    const counted = timed.length ? "MACs, not times" : "MACs (no times recorded)";
    fill(at("device"), [...timed.map((one, place) => [place, `Timed on ${one.device}`]), ["", counted]],
      wish.device === null ? "" : wish.device);
    fillBatches();
    show();
  }

  function fillBatches() {
    const comparison = timedHere(entries[wish.entry]);
    const sizes = comparison ? comparison.batch_sizes.map(String) : [];
    wish.batch = sizes.includes(wish.batch) ? wish.batch : sizes[sizes.length - 1] || null;
    fill(at("batch"), sizes.length ? sizes.map((size) => [size, size]) : [["", "any"]], wish.batch || "");
  }

  const timedHere = (entry) => (wish.device === null ? null : entry.timed[wish.device]);

  /* --- views -------------------------------------------------------------------------------------- */

  function show() {
    shownAt = document.documentElement.clientWidth;
    const entry = entries[wish.entry], found = odn.recommend(entry, wish);
    const rows = modelRows(entry, found);
    at("answer").replaceChildren(...verdict(entry, found));
    at("verdict").dataset.choice = found.choice;
    at("models").replaceChildren(modelTable(entry, rows, found), ...odn.everythingTimed(timedHere(entry), wish.batch));
    const exported = odn.exportedViews(entry.exported || [], wish.batch);
    at("exported-card").hidden = !exported.length;
    at("exported").replaceChildren(...exported);
    at("curve").replaceChildren(...curve(entry, rows));
    at("halting").replaceChildren(...halting(entry, found));
    at("pictures").replaceChildren(...pictures(entry));
    at("exits").replaceChildren(exitTable(entry, found));
    at("sources").replaceChildren(...entry.sources.map(sourceView));
  }

  function verdict(entry, found) {
    const last = entry.units_in_all || Math.max(...entry.report.exits.map((row) => row.units));
    const row = entry.report.exits.find((one) => one.exit === found.exit);
    let word = WORDS[found.choice];
    if (found.choice === "full" && !odn.isFull(entry)) word = "Keep the reference";
    const detail = found.choice === "static" ? `exit ${row.exit}: ${row.units} of ${last} units`
      : found.choice === "dynamic" ? "every input stops where it is sure" : "";
    const basis = { time: "By measured time", macs: "By MACs, not by time", only: "As recorded" }[found.basis];
    return [
      make("p", { class: "word" }, word, detail ? make("span", { class: "detail" }, ` ${detail}`) : ""),
      make("p", { class: "basis" }, `${basis}, for a loss of at most ${odn.pointsText(wish.points)}.`),
      make("ul", { class: "reasons" }, ...found.reasons.map((text) => make("li", {}, text))),
    ];
  }

  function modelRows(entry, found) {
    const reference = odn.referenceRow(entry), rows = [];
    const test = (row) => (row.accuracy || {}).test;
    const timed = timedHere(entry);
    const measured = (name) => timed && timed.rows.find((row) => row.name === name);
    rows.push({ kind: "full", name: odn.isFull(entry) ? "Full" : `Reference (exit ${reference.exit})`, accuracy: test(reference),
      macs: reference.macs_static, units: reference.units, params: reference.params, bytes: reference.bytes,
      timed: measured("full") });
    const chosen = found.basis === "time" && found.choice === "static"
      ? entry.report.exits.find((row) => row.exit === found.exit) : found.fixed.row;
    if (chosen && chosen.exit !== reference.exit) {
      const own = entry.report.static && entry.report.static.exit === chosen.exit;
      const measuredRow = timed && timed.rows.find((row) => /^static/.test(row.name) &&
        (row.exit ? row.exit === chosen.exit : own));
      rows.push({ kind: "static", name: `Static (exit ${chosen.exit})`, accuracy: test(chosen), macs: chosen.macs_static,
        units: chosen.units, params: chosen.params, bytes: chosen.bytes, timed: measuredRow });
    }
    const halts = found.halting, own = timed && odn.timedDynamic(timed, wish.batch);
    if (halts.mean_macs !== undefined) {
      const accuracy = halts.accuracy && (halts.accuracy.test || (halts.accuracy.value !== undefined ? halts.accuracy : null));
      rows.push({ kind: halts.certified ? "dynamic" : "dynamic hollow",
        name: halts.certified ? "Dynamic (certified)" : "Dynamic (not promised)", accuracy, macs: halts.mean_macs,
        units: halts.mean_units, params: halts.params, bytes: halts.bytes,
        timed: own && (own.promise || !entry.tolerances) ? own : null });
    }
    return rows;
  }

  function modelTable(entry, rows, found) {
    const whole = rows[0].macs, timed = timedHere(entry);
    const n = rows[0].accuracy ? rows[0].accuracy.n : null;
    const columns = ["Model", `Test accuracy, %${n ? ` (n = ${n.toLocaleString("en")})` : ""}`, "Units", "MACs, mean", "Share", "Parameters", "MB"];
    if (timed) columns.push("ms an image", "Speed");
    if (timed && rows.some((row) => peak(row) !== null)) columns.push("Peak MB");
    const cells = rows.map((row) => {
      const found = [row.name, accuracyText(row.accuracy), row.units === undefined || row.units === null ? NONE : String(Number(row.units.toFixed(2))),
        count(row.macs), `${((100 * row.macs) / whole).toFixed(0)} %`, count(row.params), megabytes(row.bytes)];
      if (timed) {
        const time = row.timed && row.timed.ms_per_image[wish.batch], speed = row.timed && row.timed.speedup[wish.batch];
        found.push(time ? time.median.toPrecision(3) : NONE);
        found.push(speed ? `${speed.median.toFixed(2)} x [${speed.low.toFixed(2)}, ${speed.high.toFixed(2)}]` : NONE);
      }
      if (columns.includes("Peak MB")) found.push(megabytes(peak(row)));
      return found;
    });
    const where = timed ? `; times on ${timed.device}, batch ${wish.batch}, speed as a ratio to ${odn.fullName(entry)}` +
      (timed.record ? `, from the record ${timed.record}` : "") : "";
    const caption = `Accuracy with its 95 % interval; MB: fp32 weights, of 10^6 bytes${where}`;
    const kinds = rows.map((row) => (row.kind.split(" ")[0] === found.choice ? "chosen" : ""));
    return table(caption, columns, cells, kinds);
  }

  /* Width of a chart in its own units, so that its letters keep their size on a phone. */
  const roomFor = (id) => Math.min(640, Math.max(260, at(id).clientWidth || 560));

  const peak = (row) => (row.timed && row.timed.peak_bytes && row.timed.peak_bytes[wish.batch]) || null;

  function curve(entry, rows) {
    const whole = odn.referenceRow(entry).macs_static, families = (entry.report.curves || {}).families || {};
    const exits = entry.report.exits.filter((row) => row.trained && row.accuracy && row.accuracy.test)
      .map((row) => ({ exit: row.exit, macs: row.macs_static, accuracy: row.accuracy.test }));
    const series = { exits };
    for (const name of ["snell", "confidence"])
      if (families[name])
        series[name] = families[name].map((one) => ({ macs: one.share * whole, accuracy: one.accuracy })).sort((a, b) => a.macs - b.macs);
    const marks = rows.filter((row) => row.accuracy).map((row) => ({ kind: row.kind, macs: row.macs, accuracy: row.accuracy }));
    const chart = odn.accuracyChart(series, marks, roomFor("curve"));
    if (!chart) return [make("p", {}, "This record has no accuracies on a test split.")];
    const legend = make("ul", { class: "legend" });
    const names = { full: "full", static: "static, of the answer", dynamic: "dynamic, certified", "dynamic hollow": "dynamic, not promised" };
    for (const row of marks) legend.append(make("li", { class: `key ${row.kind}` }, names[row.kind]));
    legend.append(make("li", { class: "key exits" }, "every exit, as a static model"));
    if (series.snell) legend.append(make("li", { class: "key snell" }, "halting, Snell"));
    if (series.confidence) legend.append(make("li", { class: "key confidence" }, "halting, by confidence"));
    const points = ["snell", "confidence"].flatMap((name) => (series[name] || []).map((one) => [
      name === "snell" ? "Snell" : "confidence", count(one.macs), `${((100 * one.macs) / whole).toFixed(0)} %`, accuracyText(one.accuracy)]));
    const behind = points.length
      ? details("The policies as a table", table("Halting policies on the test split: figures, not promises", ["Policy", "MACs, mean", "Share", "Test accuracy, %"], points))
      : make("p", { class: "help" }, "This record has no curves of halting policies. The exits stand in the table below.");
    return [chart, legend, behind];
  }

  function halting(entry, found) {
    const shares = found.halting.halting || null;
    if (!shares) return [make("p", {}, `No histogram: ${odn.sentence(found.halting.why) || "nothing halts in this record."}`)];
    const rows = shares.map((share, place) => ({ exit: place + 1, share }));
    const told = found.halting.certified ? "the promised policy at this tolerance" : "the record's policy, which is not promised at this tolerance";
    const units = found.halting.mean_units;
    const mean = units === undefined || units === null ? "" : ` On average ${units.toFixed(2)} units run.`;
    const cells = rows.map((one) => [`exit ${one.exit}`, odn.percent(one.share, 2)]);
    return [odn.haltingChart(rows, roomFor("halting")), make("p", { class: "help" }, `Test images, by ${told}.${mean}${rows.length > 10 && shares.includes(0) ? " Exits at which none stop are not drawn." : ""}`),
      details("The histogram as a table", table("Share of test images that stop at each exit", ["Exit", "Share"], cells))];
  }

  function exitTable(entry, found) {
    const rows = entry.report.exits, reference = entry.report.reference.exit, own = (entry.report.static || {}).exit;
    const cells = rows.map((row) => {
      const both = row.accuracy || {}, loss = odn.shownLoss(entry, row);
      const marks = `${row.exit === own ? " *" : ""}${row.exit === reference ? " +" : ""}`;
      return [`exit ${row.exit}${marks}`, String(row.units), row.trained ? accuracyText(both.selection) : "not trained",
        row.trained ? accuracyText(both.test) : NONE, count(row.macs_static), count(row.params), megabytes(row.bytes),
        row.exit === reference ? NONE : Number.isFinite(loss.points) ? loss.points.toFixed(2) : NONE];
    });
    const caption = "* the fit's own static choice, + the reference. Loses at most: by the fit's own test where it has one, " +
      "else from the top of the reference's interval to the bottom of the exit's, on the selection split";
    const classes = rows.map((row) => (found.fixed.row && row.exit === found.fixed.row.exit ? "chosen" : ""));
    return table(caption, ["Exit", "Units", "Selection, %", "Test, %", "MACs", "Parameters", "MB", "Loses at most, points"], cells, classes);
  }

  /* --- what the reader does ------------------------------------------------------------------------ */

  function setPoints(text, from) {
    const value = Number(text);
    const usable = text !== "" && Number.isFinite(value) && value >= 0 && value <= 100;
    at("points").setAttribute("aria-invalid", String(!usable));
    if (!usable) return;
    wish.points = value;
    if (from !== "slider") at("slider").value = String(Math.min(5, value));
    if (from !== "points") at("points").value = text;
    show();
  }

  async function take(file) {
    const told = at("told");
    try {
      if (file.size > 64 * 1024 * 1024) throw new odn.ReportError("This file is larger than 64 MiB; a report.json is much smaller.");
      const entry = odn.readReport(await file.text(), file.name);
      const before = entries.findIndex((one) => one.id === "own");
      if (before >= 0) entries[before] = entry; else entries.push(entry);
      chooseEntry(entries.indexOf(entry));
      told.replaceChildren(make("p", { class: "notice good" }, `Shown above: ${entry.title}, from ${file.name}.`));
      at("verdict").focus();
      at("verdict").scrollIntoView({ block: "center" });
    } catch (error) {
      const text = error instanceof odn.ReportError ? error.message : `${file.name} cannot be read: ${error.message}`;
      told.replaceChildren(make("p", { class: "notice bad", role: "alert" }, text));
      told.scrollIntoView({ block: "center" });
    }
  }

  /* Opened from the sources, where records.js is not built: a reader's own report can be shown all the same. */
  function sayNoRecords() {
    document.body.classList.add("bare");
    const command = make("code", {}, "make docs QUICK=1"), folder = make("code", {}, "build/docs/choose");
    at("answer").replaceChildren(make("p", {}, "No records here: ", command, " builds this page into ", folder, "."));
  }

  function redraw() {
    const width = document.documentElement.clientWidth;
    if (entries.length && width !== shownAt) show();
  }

  function listen() {
    window.addEventListener("resize", redraw);
    at("controls").addEventListener("submit", (event) => event.preventDefault());
    at("entry").addEventListener("change", (event) => chooseEntry(Number(event.target.value)));
    at("device").addEventListener("change", (event) => {
      wish.device = event.target.value === "" ? null : Number(event.target.value);
      fillBatches();
      show();
    });
    at("batch").addEventListener("change", (event) => { wish.batch = event.target.value; show(); });
    at("slider").addEventListener("input", (event) => setPoints(event.target.value, "slider"));
    at("points").addEventListener("input", (event) => setPoints(event.target.value, "points"));
    at("file").addEventListener("change", (event) => {
      const file = event.target.files[0];
      if (file) take(file);
      event.target.value = "";
    });
    document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      document.body.classList.remove("dropping");
      const file = event.dataTransfer.files[0];
      if (file) take(file);
    });
  }

  /* The documentation's theme switch keeps its choice in the browser; without one the system's is taken. */
  function takeTheme() {
    try {
      const theme = localStorage.getItem("theme");
      if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
    } catch {
      /* no storage: the system's */
    }
  }

  takeTheme();
  listen();
  at("overheads").replaceChildren(...odn.overheadViews(held.overheads));
  if (entries.length) chooseEntry(0); else sayNoRecords();
})();
