// Report texts and names are inserted as text nodes only, so they cannot be markup.
"use strict";

const WINDOWS_HU = { Lung: [-1350, 150], Mediastinum: [-160, 240], Bone: [-450, 1050] };
const parameters = new URLSearchParams(location.hash.slice(1));
const headers = { "X-Token": parameters.get("token") || "" };
const at = (id) => document.getElementById(id);
const viewer = new niivue.Niivue({
  isRadiologicalConvention: true, // the patient's right on the left
  sagittalNoseLeft: true,
  showAllOrientationMarkers: true,
  loadingText: "no scan",
  multiplanarPadPixels: 6,
  multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
  crosshairWidthUnit: "mm",
  crosshairWidth: 0.8,
  backColor: [0, 0, 0, 1],
  crosshairColor: [1, 0.8, 0.2, 0.6],
  logLevel: "error",
});
let frame = { unit: "mm", origin: "" }; // unit and origin of positions of the current scan
let current = null; // id of the scan that is shown
let selected = null; // id of the scan that was selected last
let queue = Promise.resolve(); // runs one task at a time, so that planes and report are of the same scan

function element(name, text, style) {
  const made = document.createElement(name);
  made.textContent = text ?? "";
  if (style) made.className = style;
  return made;
}

function showProblem(problem) {
  at("problem").textContent = problem;
  at("problem").hidden = !problem;
}

async function request(path, body) {
  const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
  const response = await fetch(path, { ...options, headers });
  const content = await response.json();
  if (!response.ok) throw new Error(content.error);
  return content;
}

function attempt(work) {
  queue = queue.then(() => showProblem("")).then(work).catch((error) => showProblem(error.message));
  return queue;
}

function fill(table, rows, missing) {
  table.replaceChildren(...rows);
  if (!rows.length) table.append(element("caption", missing || "none", "note"));
}

function row(...cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}

function scoreRow(score) {
  const name = element("td", score.name);
  name.append(element("small", `“${score.present}” against “${score.absent}”`));
  const bar = document.createElement("meter");
  bar.value = score.probability;
  const cell = element("td");
  cell.append(bar);
  return row(name, cell, element("td", score.probability.toFixed(3), "number"));
}

function neighbourRow(near) {
  const cell = element("td");
  const name = near.own ? `${near.key} (this scan)` : near.key;
  if (near.id === null || near.own) {
    cell.append(name);
  } else {
    const link = element("button", name, "case");
    link.addEventListener("click", () => open(near.id));
    cell.append(link);
  }
  cell.append(element("small", near.text));
  return row(element("td", near.kind), cell, element("td", near.similarity.toFixed(3), "number"));
}

function showPosition(location) {
  const [right, anterior, superior] = Array.from(location.mm, (mm) => mm.toFixed(0));
  const [scan, map] = location.values.map((found) => found.value);
  at("position").textContent =
    `R ${right}, A ${anterior}, S ${superior} ${frame.unit} ${frame.origin}: ${Math.round(scan)} HU` + (map === undefined ? "" : `, map ${map.toFixed(2)}`);
}

function showWindow() {
  if (!viewer.volumes.length) return;
  const [low, high] = JSON.parse(at("windows").value);
  viewer.volumes[0].cal_min = low;
  viewer.volumes[0].cal_max = high;
  viewer.updateGLVolume();
}

function clearMap() {
  while (viewer.volumes.length > 1) viewer.removeVolumeByIndex(1);
  at("map").textContent = "";
}

function clearScan() {
  current = null;
  clearMap();
  while (viewer.volumes.length) viewer.removeVolumeByIndex(0);
  for (const part of ["report", "scan", "position", "scores", "neighbours"]) at(part).replaceChildren();
}

async function showScan(id) {
  if (id !== selected) return; // another scan was selected meanwhile
  clearScan();
  at("scans").value = String(id);
  const found = await request(`api/scan/${id}`);
  at("report").textContent = found.report || "no report";
  at("scan").textContent = found.scan;
  frame = found.frame;
  fill(at("scores"), found.scores.map(scoreRow), found.scores_missing);
  fill(at("neighbours"), found.neighbours.map(neighbourRow), found.neighbours_missing);
  await viewer.loadVolumes([{ url: `scan/${id}.nii`, headers, colormap: "gray" }]);
  viewer.scene.crosshairPos = [0.5, 0.5, 0.5];
  showWindow();
  showProblem(found.warning);
  current = id;
}

function open(id) {
  selected = id;
  return attempt(() => showScan(id));
}

async function showMap(sentence) {
  if (current === null) throw new Error("first select a scan that can be read");
  clearMap();
  const found = await request("api/map", { scan: current, sentence });
  // 1 is the mean of the map; values below are not drawn.
  const colours = { colormap: "warm", cal_min: 1, cal_max: Math.max(found.max, 1.001), opacity: Number(at("opacity").value) };
  await viewer.addVolumeFromUrl({ url: `map/${found.map}.nii`, headers, ...colours });
  viewer.scene.crosshairPos = viewer.mm2frac(found.peak_mm);
  viewer.drawScene();
  viewer.createOnLocationChange();
  at("map").textContent = `${found.summary}; colours from 1 (mean) to ${found.max.toFixed(2)}`;
}

async function start() {
  const found = await request("api/scans");
  at("model").textContent = [found.model, found.index].filter(Boolean).join(" · ");
  at("scans").append(...found.scans.map((item) => new Option(item.name, item.id)));
  const windows = { ...WINDOWS_HU, Model: found.window_hu };
  at("windows").append(...Object.entries(windows).map(([name, hu]) => new Option(`${name} ${hu.join(" to ")} HU`, JSON.stringify(hu))));
  at("scans").addEventListener("change", (event) => open(Number(event.target.value)));
  at("windows").addEventListener("change", showWindow);
  at("opacity").addEventListener("input", (event) => viewer.volumes.length > 1 && viewer.setOpacity(1, Number(event.target.value)));
  at("clear").addEventListener("click", clearMap);
  at("question").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(() => showMap(at("sentence").value));
  });
  viewer.onLocationChange = showPosition;
  await viewer.attachTo("canvas");
  viewer.setSliceType(viewer.sliceTypeMultiplanar);
  await open(Number(parameters.get("scan") || 0));
  if (parameters.get("sentence")) {
    at("sentence").value = parameters.get("sentence");
    await attempt(() => showMap(parameters.get("sentence")));
  }
}

start().catch((error) => showProblem(error.message));
