// Texts of reports and names reach the page as text nodes only, so none of them can be markup.
"use strict";

const WINDOWS_HU = { Lung: [-1350, 150], Mediastinum: [-160, 240], Bone: [-450, 1050] };
const asked = new URLSearchParams(location.hash.slice(1));
const headers = { "X-Token": asked.get("token") || "" };
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
let frame = { unit: "mm", of: "" }; // what places of the case that is shown are measured in
let current = null; // the case that is shown
let wanted = null; // the case that was chosen last
let queue = Promise.resolve(); // one thing after the other, so that no plane stands beside another case's report

function element(name, text, kind) {
  const made = document.createElement(name);
  made.textContent = text ?? "";
  if (kind) made.className = kind;
  return made;
}

function tell(problem) {
  at("problem").textContent = problem;
  at("problem").hidden = !problem;
}

async function ask(path, question) {
  const how = question ? { method: "POST", body: JSON.stringify(question) } : {};
  const answer = await fetch(path, { ...how, headers: { ...headers, ...(question && { "Content-Type": "application/json" }) } });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

function attempt(work) {
  queue = queue.then(() => tell("")).then(work).catch((error) => tell(error.message));
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
  const name = near.own ? `${near.key} (this case)` : near.key;
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

function showPlace(place) {
  const [right, anterior, superior] = Array.from(place.mm, (mm) => mm.toFixed(0));
  const [scan, map] = place.values.map((found) => found.value);
  at("place").textContent =
    `R ${right}, A ${anterior}, S ${superior} ${frame.unit} ${frame.of}: ${Math.round(scan)} HU` + (map === undefined ? "" : `, map ${map.toFixed(2)}`);
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

function clearCase() {
  current = null;
  clearMap();
  while (viewer.volumes.length) viewer.removeVolumeByIndex(0);
  for (const part of ["report", "scan", "place", "scores", "neighbours"]) at(part).replaceChildren();
}

async function showCase(id) {
  if (id !== wanted) return; // another was chosen meanwhile
  clearCase();
  at("cases").value = String(id);
  const told = await ask(`api/case/${id}`);
  at("report").textContent = told.report || "none known";
  at("scan").textContent = told.scan;
  frame = told.frame;
  fill(at("scores"), told.scores.map(scoreRow), told.scores_missing);
  fill(at("neighbours"), told.neighbours.map(neighbourRow), told.neighbours_missing);
  await viewer.loadVolumes([{ url: `scan/${id}.nii`, headers, colormap: "gray" }]);
  viewer.scene.crosshairPos = [0.5, 0.5, 0.5];
  showWindow();
  tell(told.warning);
  current = id;
}

function open(id) {
  wanted = id;
  return attempt(() => showCase(id));
}

async function showMap(sentence) {
  if (current === null) throw new Error("choose a case that can be read first");
  clearMap();
  const told = await ask("api/map", { case: current, sentence });
  // 1 = no more here than anywhere: what is less is not drawn.
  const colours = { colormap: "warm", cal_min: 1, cal_max: Math.max(told.most, 1.001), opacity: Number(at("opacity").value) };
  await viewer.addVolumeFromUrl({ url: `map/${told.map}.nii`, headers, ...colours });
  viewer.scene.crosshairPos = viewer.mm2frac(told.peak_mm);
  viewer.drawScene();
  viewer.createOnLocationChange();
  at("map").textContent = `${told.told}; drawn from 1 (as much as anywhere) to ${told.most.toFixed(2)}`;
}

async function start() {
  const told = await ask("api/cases");
  at("model").textContent = [told.model, told.indexed].filter(Boolean).join(" · ");
  at("cases").append(...told.cases.map((item) => new Option(item.name, item.id)));
  const windows = { ...WINDOWS_HU, "The model's": told.window_hu };
  at("windows").append(...Object.entries(windows).map(([name, hu]) => new Option(`${name} ${hu.join(" to ")} HU`, JSON.stringify(hu))));
  at("cases").addEventListener("change", (event) => open(Number(event.target.value)));
  at("windows").addEventListener("change", showWindow);
  at("opacity").addEventListener("input", (event) => viewer.volumes.length > 1 && viewer.setOpacity(1, Number(event.target.value)));
  at("clear").addEventListener("click", clearMap);
  at("question").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(() => showMap(at("sentence").value));
  });
  viewer.onLocationChange = showPlace;
  await viewer.attachTo("canvas");
  viewer.setSliceType(viewer.sliceTypeMultiplanar);
  await open(Number(asked.get("case") || 0));
  if (asked.get("sentence")) {
    at("sentence").value = asked.get("sentence");
    await attempt(() => showMap(asked.get("sentence")));
  }
}

start().catch((error) => tell(error.message));
