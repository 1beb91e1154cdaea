// Shows what /events says, once a second. Text goes in as text, never as HTML: much of it comes from devices.
"use strict";

const KEPT = 50; // failures shown
const TREND = 60; // seconds of the trend

const at = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const precise = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** Changes a text only where it differs, so that selections and screen readers are left alone. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(name, text, kind) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function rate(perSecond) {
  if (perSecond === null) return "–";
  return perSecond < 100 ? precise.format(perSecond) : whole.format(perSecond);
}

function duration(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} days`;
}

function time(seconds) {
  if (seconds === null) return "–";
  const ms = seconds * 1000;
  if (ms < 10) return `${precise.format(ms)} ms`;
  return ms < 10000 ? `${whole.format(ms)} ms` : `${precise.format(seconds)} s`;
}

// ---- the state

let announced = "";

/** What changes by the second is not announced: only what is another state. */
function announce(verdict, reasons) {
  const state = [verdict, ...reasons.map((reason) => reason.text.replace(/\d+/g, ""))].join(". ");
  if (state === announced) return;
  announced = state;
  at("announcement").textContent = [verdict, ...reasons.map((reason) => reason.text)].join(". ");
}

function showState(state, verdict, reasons) {
  at("state").dataset.state = state;
  document.body.classList.toggle("stale", state === "waiting");
  document.title = state === "ready" ? "mqtt-rest-gateway" : `${verdict} · mqtt-rest-gateway`;
  say(at("verdict"), verdict);
  const list = at("reasons");
  while (list.children.length > reasons.length) list.lastChild.remove();
  reasons.forEach((reason, index) => {
    let item = list.children[index];
    if (!item) {
      item = make("li");
      item.append(make("span"), make("span", "", "remedy"));
      list.append(item);
    }
    say(item.firstChild, reason.text);
    say(item.lastChild, reason.remedy);
  });
  announce(verdict, reasons);
}

// ---- the figures

const trend = [];

function showFigures({ version, up_seconds, broker, upstream, pending, total }) {
  say(at("about"), `version ${version}, up for ${duration(up_seconds)}`);

  say(at("broker"), broker.connected ? "Connected" : "Not connected");
  at("broker").className = `value ${broker.connected ? "well" : "bad"}`;
  say(at("broker-since"), `for ${duration(broker.since_seconds)}`);
  say(at("broker-address"), broker.address);

  const down = upstream.outages;
  say(at("api"), upstream.up ? "Answers" : down.length === 1 ? "Down for 1 row" : `Down for ${down.length} rows`);
  at("api").className = `value ${upstream.up ? "well" : "bad"}`;
  const outages = down.map((one) => `${one.row} for ${duration(one.since_seconds)}`);
  if (outages.join() !== [...at("outages").children].map((item) => item.textContent).join()) {
    at("outages").replaceChildren(...outages.map((text) => make("li", text)));
  }
  say(at("api-url"), upstream.url);

  say(at("rate"), rate(total.per_second));
  say(at("received"), whole.format(total.messages));
  say(at("failed"), whole.format(total.failed));
  at("failed").className = total.failed > 0 ? "bad" : "";
  trend.push(total.per_second ?? 0);
  if (trend.length > TREND) trend.shift();
  const top = Math.max(1, ...trend);
  const point = (value, index) => `${120 - (trend.length - 1 - index) * 2},${(22 - (20 * value) / top).toFixed(1)}`;
  at("line").setAttribute("points", trend.map(point).join(" "));

  say(at("waiting"), whole.format(pending.messages));
  say(at("at-most"), whole.format(pending.at_most));
  const oldest = pending.oldest_seconds;
  say(at("oldest"), oldest === null ? "" : `the oldest for ${duration(oldest)}`);
  at("fill").value = pending.at_most ? pending.messages / pending.at_most : 0;
}

// ---- tables

/** A cell, with the heading that stands beside it on a phone. */
function cell(title, kind) {
  const element = make("td", undefined, kind);
  element.setAttribute("role", "cell");
  element.dataset.title = title;
  element.append(make("span"));
  return element;
}

function heading(name) {
  const element = make(name);
  element.setAttribute("role", "rowheader");
  element.scope = "row";
  return element;
}

function line() {
  const element = make("tr");
  element.setAttribute("role", "row");
  return element;
}

/** Rows without a message are named only. */
function showRows(all) {
  const rows = all.filter((row) => row.messages > 0);
  const idle = all.filter((row) => row.messages === 0);
  at("rows").hidden = rows.length === 0;
  at("idle").hidden = idle.length === 0;
  const [count, names] = at("idle").children;
  say(count, idle.length === 1 ? "1 row without a message" : `${idle.length} rows without a message`);
  say(names, idle.map((row) => row.kind === "fetch" ? `${row.name} (fetch)` : row.name).join(", "));
  const body = at("rows").tBodies[0];
  while (body.rows.length > rows.length) body.lastChild.remove();
  rows.forEach((row, index) => {
    let shown = body.rows[index];
    if (!shown) {
      shown = line();
      const name = heading("th");
      name.append(make("span"), make("span", "", "kind"));
      shown.append(name, cell("A second", "number"), cell("Messages", "number"), cell("Under way", "number"));
      shown.append(cell("API takes", "number"), cell("In all", "number"), cell("Failed"));
      body.append(shown);
    }
    const [name, perSecond, messages, pending, takes, inAll, failed] = shown.cells;
    shown.dataset.row = row.name;
    say(name.firstChild, row.name);
    say(name.lastChild, row.kind === "fetch" ? " fetch" : "");
    say(perSecond.firstChild, rate(row.per_second));
    say(messages.firstChild, whole.format(row.messages));
    say(pending.firstChild, row.kind === "fetch" ? "" : whole.format(row.pending));
    say(takes.firstChild, time(row.call_seconds));
    say(inAll.firstChild, time(row.message_seconds));
    const reasons = Object.entries(row.reasons).map(([reason, count]) => `${reason} ${whole.format(count)}`);
    const why = reasons.length ? ` (${reasons.join(", ")})` : "";
    say(failed.firstChild, row.failed === 0 ? "0" : `${whole.format(row.failed)}${why}`);
    failed.className = row.failed === 0 ? "" : "bad";
  });
}

function failureLine(failure) {
  const shown = line();
  const when = new Date(failure.at);
  const clock = make("time", when.toLocaleTimeString("en-GB"));
  clock.dateTime = failure.at;
  clock.title = when.toLocaleString();
  const first = heading("th");
  first.append(clock);
  const message = cell("Message");
  message.firstChild.append(make("code", failure.topic), make("span", `row ${failure.route}`, "below"));
  const why = cell("Why");
  const attempts = failure.attempts > 1 ? `, ${failure.attempts} attempts` : "";
  why.firstChild.append(make("span", `${failure.status} ${failure.reason}`, "reason"), make("span", failure.trouble + attempts, "below"));
  const said = cell("The API said", failure.answer ? "" : "nothing");
  if (failure.answer) said.firstChild.append(make("code", failure.answer));
  const todo = cell("What to do");
  todo.firstChild.textContent = failure.remedy;
  shown.append(first, message, why, said, todo);
  return shown;
}

function showFailures(failures, fresh) {
  const body = at("failures").tBodies[0];
  if (fresh) body.replaceChildren();
  failures.forEach((failure) => body.prepend(failureLine(failure)));
  while (body.rows.length > KEPT) body.lastChild.remove();
  at("failures").hidden = body.rows.length === 0;
  at("none").hidden = body.rows.length > 0;
}

// ---- what is heard

let source = null;
let again = 0;

function listen() {
  clearTimeout(again);
  if (source) source.close();
  let fresh = true;
  source = new EventSource("events");
  source.onopen = () => { fresh = true; };
  source.onmessage = (event) => {
    const status = JSON.parse(event.data);
    if (fresh) trend.length = 0;
    showFigures(status);
    showRows(status.rows);
    showFailures(status.failures, fresh);
    showState(status.ready ? "ready" : "unready", status.ready ? "Ready" : "Not ready", status.reasons);
    fresh = false;
  };
  source.onerror = () => {
    showState("waiting", "The gateway does not answer", [{ text: "What is shown is what was last heard. It is asked again and again.", remedy: "" }]);
    // Some errors end it for good.
    if (source.readyState === EventSource.CLOSED) again = setTimeout(listen, 2000);
  };
}

// A page that nobody sees does not listen.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(again);
    if (source) source.close();
    source = null;
  } else if (!source) {
    listen();
  }
});
showFailures([], true);
if (!document.hidden) listen();
