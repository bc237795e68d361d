// The box on the page: one file to POST /embed, its embedding, and the same request as a snippet.

import { ask, byId, element, fillPairs, Failure, getKey, setText } from "./api.js";

const TYPES = { npy: "application/x-npy", tif: "image/tiff", tiff: "image/tiff", webp: "image/webp", bmp: "image/bmp" };
const FITS = /\.(fits|fit|fts|fz|fits\.gz|fit\.gz)$/i;
const SHOWN = 8; // values
let models = [];
let running = null; // the AbortController of the request under way
let array = null; // { shape, values } of the last answer
let last = null; // the file that was sent last
const links = new Map(); // blob addresses in use

document.addEventListener("models", ({ detail }) => {
  models = detail.models.filter((model) => ["ready", "idle"].includes(model.state));
  fill(byId("model"), models.map((model) => model.name), detail.default);
  byId("example").disabled = models.length === 0;
  showPoolings();
});
byId("model").addEventListener("change", showPoolings);

function showPoolings() {
  const model = models.find(({ name }) => name === byId("model").value);
  fill(byId("pooling"), model?.poolings ?? [], "mean");
}

function fill(select, names, standard) {
  const before = select.value || standard;
  const options = names.map((name) => element("option", name, { value: name }));
  select.replaceChildren(...(options.length ? options : [element("option", "none is ready", { value: "" })]));
  select.value = names.includes(before) ? before : (names[0] ?? "");
  select.disabled = names.length === 0;
}

async function embed(file) {
  running?.abort();
  const mine = (running = new AbortController());
  last = file;
  byId("try-error").hidden = true;
  byId("result").hidden = true;
  setText("try-state", `Embedding ${file.name}…`);
  try {
    const request = requestFor(file);
    const begin = performance.now();
    const answer = await ask(request.path, { method: "POST", body: file, headers: request.headers, signal: mine.signal });
    const content = await answer.arrayBuffer();
    const roundTrip = performance.now() - begin;
    const seen = await preview(file, request, mine.signal);
    if (mine !== running) return;
    array = readNpy(content);
    show(file, request, answer, content, roundTrip);
    showPreview(seen);
  } catch (error) {
    if (error.name === "AbortError") return;
    setText("try-state", "");
    const id = error.requestId ? ` (request ${error.requestId})` : "";
    setText("try-error", `${error.code ? `${error.code}: ` : ""}${error.message}${id}`);
    byId("try-error").hidden = false;
  }
}

function requestFor(file) {
  const fits = FITS.test(file.name);
  const type = fits ? "application/fits" : (TYPES[file.name.split(".").pop().toLowerCase()] ?? file.type);
  if (!fits && type !== TYPES.npy && !type.startsWith("image/")) {
    throw new Failure("unsupported_media_type", `${file.name} is neither an image, a FITS file nor a .npy: save it as PNG, or with numpy.save.`);
  }
  if (fits) byId("fits").open = true;
  const model = models.find(({ name }) => name === byId("model").value);
  if (!model) throw new Failure("not_ready", "No model is ready yet: try again when one is.");
  if (file.size > model.limits.max_body_bytes) {
    throw new Failure("payload_too_large", `${file.name} has ${file.size} bytes, over the limit of ${model.limits.max_body_bytes}: send fewer rows.`);
  }
  const params = { model: model.name, pooling: byId("pooling").value };
  const shown = { model: model.name, ...(fits ? fitsOptions() : {}) };
  const path = `embed?${new URLSearchParams({ ...params, ...shown })}`;
  const preview = type === TYPES.npy ? null : `preview?${new URLSearchParams(shown)}`;
  return { ...params, fits, path, preview, headers: { "Content-Type": type, Accept: TYPES.npy } };
}

/** The fields below FITS that are filled in, by the names of the query. */
function fitsOptions() {
  const fields = [...byId("fits").querySelectorAll("[name]")];
  return Object.fromEntries(fields.filter(({ value }) => value.trim()).map(({ name, value }) => [name, value.trim()]));
}

/** What the model sees of an image, with the shares that are black and white; null for an array. */
async function preview(file, request, signal) {
  if (!request.preview) return null;
  const headers = { "Content-Type": request.headers["Content-Type"] };
  const answer = await ask(request.preview, { method: "POST", body: file, headers, signal });
  const [black, white] = ["Black", "White"].map((name) => `${(100 * Number(answer.headers.get(`X-Vim-Embed-${name}`))).toFixed(1)} %`);
  return { picture: await answer.blob(), note: `what the model sees; black ${black}, white ${white}` };
}

function readNpy(content) {
  const view = new DataView(content);
  const long = view.getUint8(6) > 1;
  const start = long ? 12 : 10;
  const length = long ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder("latin1").decode(content.slice(start, start + length));
  const shape = /'shape': \(([^)]*)\)/.exec(header)[1].split(",").filter((part) => part.trim()).map(Number);
  if (!header.includes("'<f4'") || shape.length !== 2) throw new Failure("", `The answer is no float32 matrix: ${header}`);
  return { shape, values: new Float32Array(content.slice(start + length)) };
}

function show(file, request, answer, content, roundTrip) {
  const [rows, dim] = array.shape;
  byId("result").hidden = false;
  setText("result-title", `${file.name}: ${rows === 1 ? "" : `${rows} rows of `}${dim} numbers`);
  setText("try-state", `${file.name} was embedded: ${rows} × ${dim} numbers.`);
  byId("random").hidden = answer.headers.get("X-Vim-Embed-Random-Weights") !== "true";
  byId("row-label").hidden = rows === 1;
  byId("row").max = rows - 1;
  byId("row").value = 0;
  showRow();
  byId("download").href = link("download", new Blob([content], { type: TYPES.npy }));
  byId("download").download = `${file.name.replace(/\.[^.]*$/, "")}-embedding.npy`;
  fillPairs(byId("timings"), [...serverTimings(answer), ["round trip", milliseconds(roundTrip)]]);
  fillPairs(byId("provenance"), provenance(answer));
  setText("curl", curl(file, request));
  setText("python", python(file, request));
  byId("result-title").focus();
}

function showPreview(seen) {
  byId("preview-figure").hidden = !seen;
  if (!seen) return;
  byId("preview").src = link("preview", seen.picture);
  setText("preview-note", seen.note);
}

function showRow() {
  const [rows, dim] = array.shape;
  const row = Math.min(rows - 1, Math.max(0, Math.trunc(Number(byId("row").value)) || 0));
  const values = array.values.subarray(row * dim, (row + 1) * dim);
  drawVector(values);
  const first = Array.from(values.subarray(0, SHOWN), (value) => value.toPrecision(5));
  setText("values", first.join(", ") + (dim > SHOWN ? ", …" : ""));
}

function drawVector(values) {
  const least = Math.min(0, ...values);
  const most = Math.max(0, ...values);
  const scale = 100 / (most - least || 1);
  const zero = most * scale;
  const bars = Array.from(values, (value, at) => `M${at} ${zero}h.8v${-value * scale}h-.8z`);
  const picture = byId("vector");
  const text = `${values.length} values from ${Math.min(...values).toPrecision(4)} to ${Math.max(...values).toPrecision(4)}`;
  picture.setAttribute("viewBox", `0 0 ${values.length} 100`);
  picture.setAttribute("aria-label", `Bars of ${text}`);
  picture.querySelector(".zero").setAttribute("d", `M0 ${zero}h${values.length}`);
  picture.querySelector(".bars").setAttribute("d", bars.join(""));
  setText("vector-note", `${text}; one bar a value, the line is zero`);
}

function serverTimings(answer) {
  const header = answer.headers.get("Server-Timing") ?? "";
  return Array.from(header.matchAll(/([\w-]+);dur=([\d.]+)/g), ([, name, time]) => [name, milliseconds(Number(time))]);
}

const milliseconds = (value) => `${value.toFixed(1)} ms`;

function provenance(answer) {
  const names = ["Model", "Weights-Digest", "Preprocessing-Digest", "Backend", "Device", "Dtype", "Pooling", "Exact", "Version"];
  const pairs = names.map((name) => [name.toLowerCase().replace("-", " "), answer.headers.get(`X-Vim-Embed-${name}`)]);
  return [...pairs, ["request id", answer.headers.get("X-Request-ID")]];
}

/** A blob's address; the one that the same use had before is given back. */
function link(use, blob) {
  if (links.has(use)) URL.revokeObjectURL(links.get(use));
  links.set(use, URL.createObjectURL(blob));
  return links.get(use);
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl(file, request) {
  const address = new URL(request.path, location.href).href;
  const key = getKey() ? [`-H "Authorization: Bearer $VIM_EMBED_API_KEY"`] : [];
  const headers = Object.entries(request.headers).map(([name, value]) => `-H ${quoted(`${name}: ${value}`)}`);
  return [
    `curl -sS --fail-with-body --data-binary ${quoted(`@${file.name}`)}`,
    ...headers,
    ...key,
    `${quoted(address)} -o embedding.npy`,
  ].join(" \\\n  ");
}

function python(file, request) {
  const text = JSON.stringify;
  if (request.fits) return pythonOfFits(file, request);
  const isArray = request.headers["Content-Type"] === TYPES.npy;
  const call = isArray ? `embed(np.load(${text(file.name)})` : `embed_images(${text(file.name)}`;
  return [
    ...(isArray ? ["import numpy as np"] : []),
    "from vim_embed_client import Client",
    "",
    ...(getKey() ? ["# the key: VIM_EMBED_API_KEY in the environment"] : []),
    `with Client(${text(new URL(".", location.href).href)}) as client:`,
    `    answer = client.${call}, model=${text(request.model)}, pooling=${text(request.pooling)})`,
    "print(answer.embeddings.shape, answer.provenance.weights_digest)",
  ].join("\n");
}

function pythonOfFits(file, request) {
  const text = JSON.stringify;
  const key = getKey() ? [`    headers |= {"Authorization": f"Bearer {os.environ['VIM_EMBED_API_KEY']}"}`] : [];
  return [
    "import io",
    ...(key.length ? ["import os"] : []),
    "",
    "import httpx",
    "import numpy as np",
    "",
    `with open(${text(file.name)}, "rb") as file:`,
    `    headers = {"Content-Type": "application/fits"}`,
    ...key,
    `    answer = httpx.post(${text(new URL(request.path, location.href).href)}, content=file.read(), headers=headers)`,
    "print(np.load(io.BytesIO(answer.raise_for_status().content)).shape)",
  ].join("\n");
}

async function copy(button) {
  const source = byId(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source); // no clipboard without HTTPS: leave the key press to the reader
    button.textContent = "Press Ctrl+C";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

async function example() {
  try {
    const answer = await ask("page/example.png");
    await embed(new File([await answer.blob()], "example.png", { type: "image/png" }));
  } catch (error) {
    setText("try-error", error.message);
    byId("try-error").hidden = false;
  }
}

const drop = byId("drop");
const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!carriesFile(event)) return;
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  if (!carriesFile(event)) return;
  event.preventDefault(); // anywhere on the page: a near miss must not leave it
  drop.classList.remove("over");
  embed(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) embed(file);
});
byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = ""; // so that the same file can be chosen again
  if (file) embed(file);
});
byId("try-form").addEventListener("submit", (event) => event.preventDefault());
byId("fits").addEventListener("change", () => last && FITS.test(last.name) && embed(last));
byId("example").addEventListener("click", example);
byId("row").addEventListener("input", showRow);
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
