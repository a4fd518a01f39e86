/* A report.json that a reader brings: checked field by field, so that a wrong file gets a sentence, not a blank page. */
(function (root) {
  "use strict";
  const odn = (root.odn = root.odn || {});
  const SCHEMAS = [1];
  const MOST_BYTES = 64 * 1024 * 1024, MOST_EXITS = 1000;

  class ReportError extends Error {}

  function fail(where, value, wanted) {
    const shown = value === undefined ? "missing" : JSON.stringify(value);
    const short = shown.length > 40 ? `${shown.slice(0, 37)}...` : shown;
    throw new ReportError(
      `${where} is ${short}; ${wanted} was expected. Take the report.json of a run directory, as odn fit writes it.`
    );
  }

  const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
  const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

  function object(value, where) {
    if (!isObject(value)) fail(where, value, "an object");
    return value;
  }

  function number(value, where, low = 0, high = Infinity) {
    if (!isNumber(value) || value < low || value > high)
      fail(where, value, high === Infinity ? `a number from ${low}` : `a number from ${low} to ${high}`);
    return value;
  }

  function whole(value, where) {
    if (!Number.isInteger(value) || value < 1) fail(where, value, "a whole number from 1");
    return value;
  }

  function accuracy(value, where) {
    if (value === null || value === undefined) return null;
    object(value, where);
    for (const key of ["value", "low", "high"]) number(value[key], `${where}.${key}`, 0, 1);
    number(value.n, `${where}.n`);
    return value;
  }

  function exitRow(row, at) {
    const where = `exits[${at}]`;
    object(row, where);
    whole(row.exit, `${where}.exit`);
    number(row.units, `${where}.units`);
    if (typeof row.trained !== "boolean") fail(`${where}.trained`, row.trained, "true or false");
    for (const key of ["macs_static", "params", "bytes"]) number(row[key], `${where}.${key}`);
    const both = row.accuracy === null || row.accuracy === undefined ? {} : object(row.accuracy, `${where}.accuracy`);
    accuracy(both.selection, `${where}.accuracy.selection`);
    accuracy(both.test, `${where}.accuracy.test`);
  }

  function dynamic(value) {
    object(value, "dynamic");
    number(value.mean_macs, "dynamic.mean_macs");
    if (value.halting !== undefined && value.halting !== null) {
      if (!Array.isArray(value.halting)) fail("dynamic.halting", value.halting, "a list of shares");
      value.halting.forEach((share, at) => number(share, `dynamic.halting[${at}]`, 0, 1 + 1e-6));
    }
    if (value.accuracy) accuracy(object(value.accuracy, "dynamic.accuracy").test, "dynamic.accuracy.test");
    if (value.certificate) {
      object(value.certificate, "dynamic.certificate");
      number(value.certificate.drop, "dynamic.certificate.drop");
    }
  }

  function timedRow(row, at, sizes) {
    const where = `comparison.rows[${at}]`;
    object(row, where);
    if (typeof row.name !== "string") fail(`${where}.name`, row.name, "a name");
    accuracy(row.accuracy, `${where}.accuracy`);
    for (const kind of ["ms_per_image", "speedup"]) {
      object(row[kind], `${where}.${kind}`);
      for (const size of sizes) {
        const found = object(row[kind][size], `${where}.${kind}.${size}`);
        for (const key of ["median", "low", "high"]) number(found[key], `${where}.${kind}.${size}.${key}`);
      }
    }
  }

  function comparison(value) {
    object(value, "comparison");
    if (typeof value.device !== "string") fail("comparison.device", value.device, "the name of a device");
    if (!Array.isArray(value.batch_sizes) || !value.batch_sizes.length)
      fail("comparison.batch_sizes", value.batch_sizes, "a list of batch sizes");
    value.batch_sizes.forEach((size, at) => whole(size, `comparison.batch_sizes[${at}]`));
    if (!Array.isArray(value.rows) || !value.rows.length) fail("comparison.rows", value.rows, "a list of models");
    value.rows.forEach((row, at) => timedRow(row, at, value.batch_sizes));
  }

  function curves(value) {
    object(value, "curves");
    object(value.families, "curves.families");
    for (const [name, points] of Object.entries(value.families)) {
      if (!Array.isArray(points)) fail(`curves.families.${name}`, points, "a list of points");
      points.forEach((point, at) => {
        const where = `curves.families.${name}[${at}]`;
        number(object(point, where).share, `${where}.share`);
        accuracy(object(point.accuracy, `${where}.accuracy`), `${where}.accuracy`);
      });
    }
  }

  /* The data of a report.json as an entry of the page; throws ReportError with what is wrong and what to do. */
  function readReport(text, name = "your report") {
    if (text.length > MOST_BYTES) throw new ReportError("This file is larger than 64 MiB; a report.json is much smaller.");
    let report;
    try {
      report = JSON.parse(text);
    } catch (error) {
      throw new ReportError(`This file is not JSON (${error.message}). Take the report.json of a run directory.`);
    }
    if (!isObject(report) || !("schema" in report))
      throw new ReportError("This file has no schema number, so odn did not write it. Take the report.json of a run directory.");
    if (!SCHEMAS.includes(report.schema))
      throw new ReportError(`This report has schema ${JSON.stringify(report.schema)}; this page reads ${SCHEMAS.join(", ")}. ` +
        "Use the site of the release that wrote it.");
    if (typeof report.model !== "string") fail("model", report.model, "the name of a model");
    if (!Array.isArray(report.exits) || !report.exits.length || report.exits.length > MOST_EXITS)
      fail("exits", report.exits, "a list of exits");
    report.exits.forEach(exitRow);
    report.exits.sort((one, two) => one.exit - two.exit);
    const reference = whole(object(report.reference, "reference").exit, "reference.exit");
    if (!report.exits.some((row) => row.exit === reference)) fail("reference.exit", reference, "one of the exits");
    const chosen = whole(object(report.static, "static").exit, "static.exit");
    if (!report.exits.some((row) => row.exit === chosen)) fail("static.exit", chosen, "one of the exits");
    if (report.dynamic) dynamic(report.dynamic);
    if (report.comparison) comparison(report.comparison);
    if (report.curves) curves(report.curves);
    const data = isObject(report.data) ? report.data.name : report.data;
    return {
      id: "own", title: `${report.model} on ${data}`, report, tolerances: null, stops: null,
      timed: report.comparison ? [report.comparison] : [],
      sources: [{ what: "Everything shown", file: name, claim: "a report that you brought; it stays in your browser",
        environment: isObject(report.environment) ? report.environment : {} }],
    };
  }

  Object.assign(odn, { readReport, ReportError });
})(typeof globalThis === "undefined" ? this : globalThis);
