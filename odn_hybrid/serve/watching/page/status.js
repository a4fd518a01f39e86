"use strict";
// Polls /status once a second while somebody looks, and writes what it says into the page. All text goes in as
// textContent: names and sentences come from models' files.
(() => {
  const EVERY = 1000, PATIENCE = 5000, KEY = "odn-token";
  const WHY = {
    BadRequest: "bad request", DeadlinePassed: "deadline passed", Failed: "failed",
    Overloaded: "overloaded", Stopping: "stopping", TooLarge: "too large", Unknown: "unknown model",
  };
  const $ = (id) => document.getElementById(id);
  const cards = new Map();
  let timer = 0, busy = false, paused = false, lostSince = null;

  const make = (tag, className, ...inside) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...inside);
    return node;
  };
  const write = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const whole = (number) => Math.round(number).toLocaleString("en");
  const short = (number) => number >= 100 ? whole(number) : number >= 10 ? number.toFixed(1) : number.toFixed(2);

  function time(ms) {
    if (ms === null) return ["–", ""];
    if (ms >= 1000) return [(ms / 1000).toPrecision(3), "s"];
    return [ms >= 100 ? String(Math.round(ms)) : ms.toPrecision(ms < 1 ? 2 : 3), "ms"];
  }

  function span(seconds) {
    const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
    const first = Math.max(parts.findIndex(([size]) => seconds >= size), 0);
    const at = seconds < 1 ? 3 : first;
    const [size, name] = parts[at], next = parts[at + 1];
    const rest = next && at < 2 ? ` ${Math.floor((seconds % size) / next[0])} ${next[1]}` : "";
    return `${Math.floor(seconds / size)} ${name}${rest}`;
  }

  // --- a model's card ---------------------------------------------------------------------------------

  function number(name) {
    const value = document.createTextNode("–"), unit = make("small");
    return { node: make("div", "", make("dt", "", name), make("dd", "", value, unit)), value, unit };
  }

  function said() {
    const title = make("strong"), text = make("p");
    return { node: make("div", "said", title, text), title, text };
  }

  function head(text, className) {
    const cell = make("th", className, text);
    cell.scope = "col";
    return cell;
  }

  function card(index) {
    const name = make("h2"), facts = make("p", "facts");
    name.id = `model-${index}`;
    const numbers = {
      p50: number("Median latency"), p99: number("99th percentile"),
      rate: number("Throughput"), depth: number("Mean depth"),
    };
    const rows = make("tbody");
    const caption = make("caption", "unseen", "Images of the last minute by the exit where they stopped, and images that wait now");
    const table = make("table", "", caption, make("thead", "", make("tr", "",
      head("Exit"), head("Units"), head("Stopped here", "share"), head("Images"), head("Waiting"))), rows);
    const promise = said(), drift = said(), refused = make("p", "facts");
    const node = make("section", "model", name, facts,
      make("dl", "numbers", ...Object.values(numbers).map((n) => n.node)),
      make("h3", "", "Exits, last minute"), table, promise.node, drift.node,
      make("h3", "", "Refused, last minute"), refused);
    node.setAttribute("aria-labelledby", name.id);
    return { node, name, facts, numbers, rows, exits: new Map(), promise, drift, refused };
  }

  function row() {
    const exit = make("th"), units = make("td"), images = make("td"), waiting = make("td");
    const bar = make("span", "bar"), percent = make("span", "percent");
    const track = make("span", "track", bar);
    exit.scope = "row";
    track.setAttribute("aria-hidden", "true");
    const share = make("td", "share", make("div", "", track, percent));
    return { node: make("tr", "", exit, units, share, images, waiting), exit, units, images, waiting, bar, percent };
  }

  function fill(view, model) {
    write(view.name, model.name);
    write(view.facts, `${model.kind} · ${model.runtime} · version ${model.version}`);
    const put = (place, value, unit) => {
      if (place.value.data !== value) place.value.data = value;
      write(place.unit, unit);
    };
    put(view.numbers.p50, ...time(model.p50_ms));
    put(view.numbers.p99, ...time(model.p99_ms));
    put(view.numbers.rate, model.images ? short(model.images_per_s) : "0", "images/s");
    put(view.numbers.depth, model.mean_units === null ? "–" : model.mean_units.toFixed(1), `of ${model.most_units} units`);
    fillExits(view, model);
    fillSaid(view.promise, ...promised(model.certificate, model.drift.state === "alarm"));
    fillSaid(view.drift, ...drifted(model.drift));
    const why = Object.entries(model.refused).map(([kind, count]) => `${WHY[kind] || kind}: ${whole(count)}`);
    write(view.refused, why.length ? why.join(", ") : "none");
  }

  function fillExits(view, model) {
    const waiting = new Map(model.queue.map((queue) => [queue.exit, queue.images]));
    const kept = new Set(model.exits.map((exit) => exit.exit));
    for (const [exit, old] of view.exits) if (!kept.has(exit)) { old.node.remove(); view.exits.delete(exit); }
    model.exits.forEach((exit, place) => {
      let cells = view.exits.get(exit.exit);
      if (!cells) {
        cells = row();
        view.exits.set(exit.exit, cells);
        view.rows.insertBefore(cells.node, view.rows.children[place] || null);
      }
      const share = model.images ? exit.images / model.images : 0;
      write(cells.exit, String(exit.exit));
      write(cells.units, exit.units === null ? "–" : String(exit.units));
      write(cells.images, whole(exit.images));
      write(cells.percent, `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`);
      cells.bar.style.width = `${100 * share}%`;
      const queue = waiting.get(exit.exit);
      write(cells.waiting, queue === undefined ? "–" : whole(queue));
      cells.waiting.classList.toggle("none", !queue);
      cells.images.classList.toggle("none", !exit.images);
    });
  }

  function fillSaid(view, kind, title, text) {
    view.node.className = `said ${kind}`;
    write(view.title, title);
    write(view.text, text.charAt(0).toUpperCase() + text.slice(1));
  }

  function promised(found, drifted) {
    if (found.state === "speaks" && drifted) return ["care", "Certified, for inputs unlike these", found.statement || ""];
    if (found.state === "speaks") return ["good", "Certified", found.statement || ""];
    if (found.state === "void") return ["care", "Certificate void", `${found.why}. It says: ${found.statement || "nothing"}`];
    return ["", "Not certified", found.statement ? `${found.why}: ${found.statement}` : found.why];
  }

  function drifted(found) {
    if (found.state === "alarm") return ["bad", "Drift alarm", found.sentence];
    if (found.state === "watching") return ["good", "No drift seen", found.sentence];
    return ["", "Drift not watched", found.sentence];
  }

  // --- the page ---------------------------------------------------------------------------------------

  function show(found) {
    const facts = [`version ${found.version}`, `up ${span(found.uptime_s)}`];
    if (found.rss_bytes) facts.push(`${whole(found.rss_bytes / 1e6)} MB`);
    if (found.log_lines_lost) facts.push(`${whole(found.log_lines_lost)} log lines lost`);
    write($("server"), facts.join(" · "));
    const names = new Set(found.models.map((model) => model.name));
    for (const [name, view] of cards) if (!names.has(name)) { view.node.remove(); cards.delete(name); }
    for (const model of found.models) {
      let view = cards.get(model.name);
      if (!view) {
        view = card(cards.size);
        cards.set(model.name, view);
        $("models").append(view.node);
      }
      fill(view, model);
    }
    if (found.ready) state("good", "Live"); else state("care", "Loading models");
  }

  function state(kind, text) {
    $("state").className = `state ${kind}`;
    write($("state"), text);
  }

  function reached(yes) {
    $("models").classList.toggle("stale", !yes);
    $("notice").hidden = yes;
    if (yes) { lostSince = null; return; }
    if (lostSince === null) {
      lostSince = new Date().toLocaleTimeString();
      $("notice").textContent = `The server has not answered since ${lostSince}. The numbers below are older.`;
    }
    state("bad", "Unreachable");
  }

  function ask(wrong) {
    $("notice").hidden = true;
    $("models").classList.add("stale");
    state("care", "Token needed");
    if (!$("token").hidden) return;
    write($("ask"), (wrong ? "This is not the server's token. " : "This server wants its token. ")
      + "It stays in this tab and is forgotten with it.");
    $("token").hidden = false;
    $("secret").focus();
  }

  async function look() {
    const token = sessionStorage.getItem(KEY);
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    let answer, found;
    try {
      answer = await fetch("status", { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
      if (answer.status === 401) {
        sessionStorage.removeItem(KEY);
        ask(token !== null);
        return false;
      }
      if (!answer.ok) throw new Error(String(answer.status));
      found = await answer.json();
    } catch {
      reached(false);
      return true;
    }
    $("token").hidden = true;
    reached(true);
    show(found);
    return true;
  }

  async function poll() {
    clearTimeout(timer);
    if (busy || paused || document.hidden) return;
    busy = true;
    let again = false;
    try { again = await look(); } finally { busy = false; }
    if (paused) state("", "Paused");  // the answer was on its way
    else if (again && !document.hidden) timer = setTimeout(poll, EVERY);
  }

  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    if (paused) { clearTimeout(timer); state("", "Paused"); } else poll();
  });
  $("token").addEventListener("submit", (event) => {
    event.preventDefault();
    const secret = $("secret").value.trim();
    if (!secret) return;
    sessionStorage.setItem(KEY, secret);
    $("secret").value = "";
    $("token").hidden = true;
    poll();
  });
  document.addEventListener("visibilitychange", poll);
  poll();
})();
