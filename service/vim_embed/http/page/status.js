// The live part of the page: asks /status every two seconds while the page is seen.

import { ask, byId, element, fillPairs, getKey, number, onKeyWanted, setKey, setText } from "./api.js";

const EVERY = 2000; // ms
const PATIENCE = 10000; // ms
const ANNOUNCE_EVERY = 30000; // ms
let timer = null;
let paused = false;
let announced = 0;
let shown = ""; // the models as they are on the page

async function update() {
  clearTimeout(timer);
  timer = null;
  if (document.hidden || paused) return;
  try {
    const answer = await ask("status", { signal: AbortSignal.timeout(PATIENCE) });
    show(await answer.json());
  } catch (error) {
    if (error.code === "unauthorized") return;
    lost(error);
  }
  if (timer === null) timer = setTimeout(update, EVERY);
}

function show(status) {
  byId("tiles").classList.remove("stale");
  byId("problem").hidden = true;
  keyless(false);
  byId("docs").hidden = getKey() !== ""; // a browser's own requests carry no key
  byId("forget").hidden = getKey() === "";
  setText("version", status.version);
  showState(status);
  showNumbers(status);
  showModels(status);
  showErrors(status.errors);
}

function showState({ ready, reason, models }) {
  const loading = models.some((model) => model.state === "loading");
  const state = ready ? "ready" : loading ? "loading" : "failed";
  byId("state").dataset.state = state;
  const count = models.filter((model) => ["ready", "idle"].includes(model.state)).length;
  const idle = models.filter((model) => model.state === "idle").length;
  const resting = idle ? `, ${idle} idle` : "";
  setText("state", ready ? `ready, ${count} of ${counted(models.length, "model", "models")}${resting}` : loading ? "loading" : "not ready");
  if (!ready) complain(reason, loading);
}

function complain(message, mild = false) {
  const problem = byId("problem");
  problem.hidden = false;
  problem.classList.toggle("mild", mild);
  setText("problem", message);
}

function showNumbers({ throughput, queue, batches, latency, window_seconds: span }) {
  setText("rate", number(throughput.rows_per_second));
  setText("waiting", number(queue.waiting_rows));
  setText("capacity", `of ${queue.capacity_rows.toLocaleString("en")} that may wait`);
  setText("mean-rows", number(batches.mean_rows));
  setText("batches", `${counted(batches.count, "batch", "batches")} in ${span} s`);
  setText("p50", number(latency.p50_ms));
  setText("p99", number(latency.p99_ms));
  setText("answers", `${counted(latency.count, "answer", "answers")} in ${span} s`);
  drawHistory(throughput.rows_each_second);
  if (Date.now() - announced > ANNOUNCE_EVERY) {
    announced = Date.now();
    setText("announce", `${number(throughput.rows_per_second)} rows per second, ${queue.waiting_rows} waiting`);
  }
}

const counted = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

function drawHistory(rows) {
  const most = Math.max(1, ...rows);
  const bars = rows.map((count, second) => `M${second} 20h.8v${(-20 * count) / most}h-.8z`);
  byId("history").setAttribute("viewBox", `0 0 ${rows.length} 20`);
  byId("history").querySelector("path").setAttribute("d", bars.join(""));
  const top = Math.max(...rows);
  setText("history-note", top ? `the last ${rows.length} s, at most ${counted(top, "row", "rows")} in one` : `the last ${rows.length} s`);
}

function showModels(status) {
  const now = JSON.stringify([status.models, status.default]);
  if (now === shown) return;
  shown = now;
  byId("models").replaceChildren(...status.models.map((model) => card(model, status.default)));
  document.dispatchEvent(new CustomEvent("models", { detail: status }));
}

function card(model, standard) {
  const made = element("article", "", { class: "card", "aria-label": model.name });
  const title = element("h3", model.name);
  title.append(element("span", model.state, { class: "pill", "data-state": model.state }));
  if (model.pinned) title.append(element("span", "pinned", { class: "note" }));
  if (model.name === standard) title.append(element("span", "default", { class: "note" }));
  made.append(title);
  if (model.reason) made.append(element("p", model.reason, { class: model.state === "failed" ? "notice" : "note" }));
  if (!model.weights) return made;
  if (model.weights.random) made.append(element("p", "Random weights: for demos and tests only.", { class: "notice mild" }));
  const details = element("dl", "", { class: "pairs" });
  fillPairs(details, [
    ["kind", `${model.kind}, ${model.dim} numbers an image`],
    ["backend", `${model.backend}: ${model.backend_reason}`],
    ["dtype", model.dtype],
    ["device", model.device],
    ["weights", model.weights.source + (model.weights.revision ? ` at ${model.weights.revision}` : "")],
    ["digest", model.weights.digest],
    ["image", `${model.preprocessing.image_size} × ${model.preprocessing.image_size} pixels`],
  ]);
  made.append(details);
  return made;
}

function showErrors(errors) {
  byId("no-errors").hidden = errors.length > 0;
  const items = errors.map((error) => {
    const item = element("li");
    const title = element("p");
    title.append(element("b", error.code), ` ${error.status}, ${error.route}`);
    const note = element("p", "", { class: "note" });
    const when = element("time", new Date(error.time).toLocaleString(), { datetime: error.time });
    const span = element("span");
    span.append(when, error.count > 1 ? `, ${error.count} times` : "");
    note.append(span, element("code", error.request_id));
    item.append(title, element("p", error.message), note);
    return item;
  });
  byId("errors").replaceChildren(...items);
}

function lost(error) {
  byId("state").dataset.state = "lost";
  setText("state", "no answer");
  byId("tiles").classList.add("stale");
  complain(`${error.message} Asking again every ${EVERY / 1000} s; the numbers are old.`);
}

function keyless(is) {
  byId("main").classList.toggle("keyless", is);
  byId("key-section").hidden = !is;
}

onKeyWanted(() => {
  byId("state").dataset.state = "waiting";
  setText("state", "key needed");
  byId("docs").hidden = true;
  byId("forget").hidden = true;
  keyless(true);
  if (getKey()) complain("The service does not accept this key.");
  setKey("");
  byId("key").focus();
});

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value.trim());
  byId("key").value = "";
  byId("problem").hidden = true;
  update();
});

byId("forget").addEventListener("click", () => {
  setKey("");
  location.reload();
});

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  update();
});

document.addEventListener("visibilitychange", update);
update();
