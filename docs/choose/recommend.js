/* Static, dynamic or keep the full network: the choice, as pure functions of a record. No page, no network.

An entry is {id, title, report, tolerances, ...}: `report` as report.json holds it, `tolerances` what the library
chose at each tolerance (benchmarks/choosing.py), or null. Accuracies are fractions, tolerances points (hundredths). */
(function (root) {
  "use strict";
  const odn = (root.odn = root.odn || {});
  const WORTH_IT = 1.05; // as odn_hybrid/deploy/comparing/advice.py: a gain of 5 % or less is none
  const RANK = 1.959964; // of a 95 % interval

  const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;
  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  const pointsText = (points) => plural(Number(points.toFixed(2)), "point");

  function referenceRow(entry) {
    const exit = entry.report.reference.exit;
    return entry.report.exits.find((row) => row.exit === exit);
  }

  function isFull(entry) {
    const last = Math.max(...entry.report.exits.map((row) => row.exit));
    return entry.report.reference.exit === last && entry.report.reference.full !== false;
  }

  function fullName(entry) {
    return isFull(entry) ? "the full network" : `the reference (exit ${entry.report.reference.exit})`;
  }

  /* The most that exit `row` loses, in points, and how that is known. */
  function shownLoss(entry, row) {
    const report = entry.report, reference = referenceRow(entry);
    if (row.exit === reference.exit) return { points: 0, why: "" };
    const found = [];
    if (report.static && report.static.exit === row.exit) {
      const told = /loses at most (-?[\d.]+) points?/.exec(report.static.reason || "");
      if (told) found.push({ points: Math.max(0, Number(told[1])), why: `The fit's own test: ${report.static.reason}.` });
    }
    const asked = (entry.tolerances || []).find((one) => one.static.exit <= row.exit);
    if (asked) found.push({ points: asked.points, why: `The library's test: ${asked.static.reason}.` });
    const mine = row.accuracy && row.accuracy.selection, whole = reference.accuracy && reference.accuracy.selection;
    if (row.trained && mine && whole) {
      const points = 100 * (whole.high - mine.low);
      found.push({
        points,
        why: `Exit ${row.exit} loses at most ${points.toFixed(1)} points, if ${fullName(entry)} is as good as the ` +
          `top of its 95 % interval and exit ${row.exit} as poor as the bottom of its own (${mine.n} selection images).`,
      });
    }
    return found.sort((one, two) => one.points - two.points)[0] || { points: Infinity, why: "" };
  }

  function atTolerance(entry, points) {
    const below = (entry.tolerances || []).filter((one) => one.points <= points + 1e-9);
    return below.length ? below[below.length - 1] : null;
  }

  /* {row, why} of the shallowest exit shown to lose at most `points`, or {row: null, why}. */
  function staticAt(entry, points) {
    const reference = referenceRow(entry);
    if (entry.tolerances) {
      const told = atTolerance(entry, points);
      if (!told) return { row: null, why: "The record has no tolerance as small as this one." };
      const row = entry.report.exits.find((one) => one.exit === told.static.exit);
      const why = `The library's test at ${pointsText(told.points)}: ${told.static.reason}.`;
      return { row: row.exit < reference.exit ? row : null, why };
    }
    const cheaper = entry.report.exits.filter((row) => row.exit < reference.exit && row.trained);
    for (const row of cheaper) {
      const loss = shownLoss(entry, row);
      if (loss.points <= points + 1e-9) return { row, why: loss.why };
    }
    return { row: null, why: `No shallower exit is shown to lose at most ${pointsText(points)}.` };
  }

  /* The halting model that is promised to lose at most `points`: {certified, why, accuracy, mean_macs, ...}. */
  function dynamicAt(entry, points) {
    const own = entry.report.dynamic;
    if (entry.tolerances) {
      const told = atTolerance(entry, points);
      if (!told) return { certified: false, why: "The record has no tolerance as small as this one." };
      const sizes = own ? { bytes: own.bytes, params: own.params } : {};
      return { ...sizes, ...told.dynamic, why: told.dynamic.statement };
    }
    if (!own) return { certified: false, why: entry.report.no_dynamic || "This record has no halting model." };
    const certificate = own.certificate;
    if (!certificate) return { ...own, certified: false, why: own.refusal || "It has no certificate." };
    const measure = (certificate.promise && certificate.promise.measure) || "accuracy";
    if (measure !== "accuracy")
      return { ...own, certified: false, why: `Its certificate speaks of ${measure}, not of accuracy.` };
    const drop = 100 * certificate.drop;
    const why = certificate.statement || `It loses at most ${pointsText(drop)}.`;
    if (drop <= points + 1e-9) return { ...own, certified: true, why };
    return { ...own, certified: false, why: `Its certificate allows ${pointsText(drop)}, more than you do.` };
  }

  function sameMachine(entry, wish) {
    const all = entry.timed || [];
    return wish.device === null || wish.device === undefined ? null : all[wish.device] || null;
  }

  /* Median of the ratios slow / fast with a 95 % interval: the record's own, or by rounds where they are kept,
     else by the ends. */
  function ratio(slow, fast, batch) {
    const told = fast.over && fast.over[batch] && fast.over[batch][slow.name];
    if (told) return told;
    const one = slow.rounds_ms && slow.rounds_ms[batch], two = fast.rounds_ms && fast.rounds_ms[batch];
    if (one && two && one.length === two.length && one.length > 1) {
      const sorted = one.map((value, at) => value / two[at]).sort((a, b) => a - b);
      const n = sorted.length, middle = (n - 1) / 2;
      const reach = Math.min(middle, (RANK * Math.sqrt(n)) / 2);
      return {
        median: (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2,
        low: sorted[Math.max(0, Math.floor(middle - reach))],
        high: sorted[Math.min(n - 1, Math.ceil(middle + reach))],
      };
    }
    const slower = slow.speedup[batch], faster = fast.speedup[batch];
    return {
      median: faster.median / slower.median,
      low: faster.low / slower.high,
      high: faster.high / slower.low,
    };
  }

  const gainText = (gain) => `${gain.median.toFixed(2)} x (95 % interval ${gain.low.toFixed(2)} to ${gain.high.toFixed(2)})`;

  function exitText(entry, row) {
    return `exit ${row.exit} (${row.units} of ${plural(entry.report.exits[entry.report.exits.length - 1].units, "unit")})`;
  }

  function timedDynamic(comparison, batch) {
    return comparison.rows.find((row) => (row.kind || row.name) === "dynamic" && row.speedup[batch]) || null;
  }

  /* What is promised of the halting model that was timed: by its own certificate, else by the report's. */
  function promisedWhenTimed(entry, points, own) {
    if (!own.promise) return dynamicAt({ ...entry, tolerances: null }, points);
    const sizes = entry.report.dynamic ? { bytes: entry.report.dynamic.bytes, params: entry.report.dynamic.params } : {};
    const told = { ...sizes, accuracy: own.accuracy, mean_macs: own.mean_macs, mean_units: own.mean_units, halting: own.halting };
    const asked = own.promise.points;
    if (!own.certified) return { ...told, certified: false, why: own.note || "It has no certificate as it was timed." };
    if (asked <= points + 1e-9) return { ...told, certified: true, why: own.promise.statement };
    return { ...told, certified: false, why: `Its certificate allows ${pointsText(asked)}, more than you do.` };
  }

  function byTime(entry, points, comparison, batch, fixed, halting) {
    const rows = comparison.rows, reference = referenceRow(entry);
    const allowed = (exit) => {
      if (entry.tolerances) return fixed.row !== null && exit >= fixed.row.exit;
      return shownLoss(entry, entry.report.exits.find((one) => one.exit === exit)).points <= points + 1e-9;
    };
    const exitOf = (row) => row.exit || entry.report.static.exit;
    const statics = rows.filter(
      (row) => /^static/.test(row.name) && exitOf(row) < reference.exit && allowed(exitOf(row)) && row.speedup[batch]
    );
    statics.sort((one, two) => two.speedup[batch].median - one.speedup[batch].median);
    let best = statics[0] || null;
    const where = `at batch ${batch} on ${comparison.device}`;
    const reasons = [];
    if (best && best.speedup[batch].low <= WORTH_IT) {
      reasons.push(`Static (exit ${exitOf(best)}) is not clearly faster ${where}: ${gainText(best.speedup[batch])}.`);
      best = null;
    }
    const own = timedDynamic(comparison, batch), promised = own && promisedWhenTimed(entry, points, own);
    let dynamic = own && own.certified && promised.certified ? own : null;
    if (dynamic && dynamic.speedup[batch].low <= WORTH_IT) {
      reasons.push(`Dynamic halting is not clearly faster ${where}: ${gainText(dynamic.speedup[batch])}.`);
      dynamic = null;
    } else if (own && !dynamic) {
      const why = own.certified ? promised.why : halting.why || own.note;
      reasons.push(
        `Dynamic halting runs ${gainText(own.speedup[batch])} as fast, but it is not promised to lose at most ` +
          `${pointsText(points)}. ${sentence(why)}`
      );
    }
    if (dynamic && (!best || ratio(best, dynamic, batch).low > 1)) {
      reasons.unshift(`It runs ${gainText(dynamic.speedup[batch])} as fast as ${fullName(entry)} ${where}.`);
      if (best) reasons.push(`That is ${gainText(ratio(best, dynamic, batch))} as fast as the static model.`);
      return { choice: "dynamic", exit: null, basis: "time", reasons };
    }
    if (best) {
      const row = entry.report.exits.find((one) => one.exit === exitOf(best));
      reasons.unshift(`It runs ${gainText(best.speedup[batch])} as fast as ${fullName(entry)} ${where}.`);
      const loss = shownLoss(entry, row);
      reasons.push(entry.tolerances ? fixed.why : loss.why);
      if (dynamic) {
        const gain = ratio(best, dynamic, batch), than = gain.high < 1 ? "slower" : "not clearly faster";
        reasons.push(`Dynamic halting is promised too, and ${than} than that: ${gainText(gain)}.`);
      }
      return { choice: "static", exit: row.exit, basis: "time", reasons };
    }
    if (!statics.length) {
      const untimed = fixed.row ? ` ${sentence(`Exit ${fixed.row.exit} is, but it was not timed here`)}` : "";
      reasons.push(`No shallower exit that was timed is shown to lose at most ${pointsText(points)}.${untimed}`);
    }
    reasons.unshift(`Nothing that is shown to be good enough is clearly faster ${where}.`);
    return { choice: "full", exit: reference.exit, basis: "time", reasons };
  }

  function byMacs(entry, points, fixed, halting) {
    const reference = referenceRow(entry), whole = reference.macs_static, reasons = [];
    const cut = fixed.row && fixed.row.macs_static * WORTH_IT < whole ? fixed.row : null;
    const halts = halting.certified && halting.mean_macs * WORTH_IT < whole;
    const share = (macs) => `${(100 * macs / whole).toFixed(0)} % of the MACs of ${fullName(entry)}`;
    let choice = "full";
    if (halts && (!cut || halting.mean_macs * WORTH_IT < cut.macs_static)) choice = "dynamic";
    else if (cut) choice = "static";
    if (choice === "dynamic") {
      reasons.push(`It needs ${share(halting.mean_macs)} on average.`, sentence(halting.why));
      reasons.push(cut ? `The static model would need ${share(cut.macs_static)}. ${fixed.why}` : fixed.why);
    } else if (choice === "static") {
      reasons.push(`It needs ${share(cut.macs_static)}.`, fixed.why);
      reasons.push(halts ? `Halting needs ${share(halting.mean_macs)}: hardly less, and the plain model is simpler.`
        : `Dynamic halting is not promised here. ${sentence(halting.why)}`);
    } else {
      reasons.push(`Nothing cheaper is shown to lose at most ${pointsText(points)}.`, fixed.why);
      reasons.push(`Dynamic halting: ${sentence(halting.why)}`);
    }
    reasons.push("This counts MACs only. Halting mostly gains less time than MACs, so measure on your device: odn compare RUN.");
    return { choice, exit: choice === "static" ? cut.exit : choice === "full" ? reference.exit : null, basis: "macs", reasons };
  }

  function sentence(text) {
    const told = String(text || "").trim();
    if (!told) return "";
    const capital = told[0].toUpperCase() + told.slice(1);
    return /[.!?]$/.test(capital) ? capital : `${capital}.`;
  }

  /* wish: {points, device: index into entry.timed or null, batch: text}. */
  function recommend(entry, wish) {
    const reference = referenceRow(entry);
    const trained = entry.report.exits.filter((row) => row.trained);
    const fixed = staticAt(entry, wish.points), comparison = sameMachine(entry, wish);
    const own = comparison && timedDynamic(comparison, String(wish.batch));
    const halting = own && own.promise ? promisedWhenTimed(entry, wish.points, own) : dynamicAt(entry, wish.points);
    if (trained.length === 1 && !entry.report.dynamic) {
      const reason = entry.report.static && entry.report.static.reason;
      const reasons = [sentence(reason), "This record holds the depth that it chose and no other: the tolerance changes nothing."];
      const last = entry.units_in_all || reference.units;
      const choice = reference.units < last ? "static" : "full";
      return { choice, exit: reference.exit, basis: "only", reasons, fixed, halting };
    }
    const found = comparison
      ? byTime(entry, wish.points, comparison, String(wish.batch), fixed, halting)
      : byMacs(entry, wish.points, fixed, halting);
    return { ...found, reasons: found.reasons.filter(Boolean), fixed, halting };
  }

  Object.assign(odn, { recommend, staticAt, dynamicAt, shownLoss, atTolerance, referenceRow, fullName, isFull,
    ratio, timedDynamic, percent, plural, pointsText, sentence, exitText });
})(typeof globalThis === "undefined" ? this : globalThis);
