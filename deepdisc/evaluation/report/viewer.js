// The field: a picture to zoom and pan, outlines of what was right, false and missed, and each object's own card.
// World coordinates are pixel edges of the mosaic, y upwards; nothing is loaded from anywhere.
function openField(root, field) {
  const [X0, Y0, WIDTH, HEIGHT] = field.window;
  const $ = (name) => root.querySelector("[data-part=" + name + "]");
  const canvas = $("sky"), status = $("status"), card = $("card");
  const LAYERS = field.layers;
  const state = {
    x: X0 + WIDTH / 2, y: Y0 + HEIGHT / 2, scale: 1, picture: field.pictures[0].name, side: 0, chosen: null,
    shown: Object.fromEntries(LAYERS.map((layer) => [layer.kind, layer.shown])),
  };

  // ------------------------------------------------------------------------------------------------------- elements
  function element(tag, text, parent, properties = {}) {
    const made = Object.assign(document.createElement(tag), properties);
    if (text !== undefined && text !== null) made.textContent = text;  // never innerHTML: names come from files
    if (parent) parent.append(made);
    return made;
  }

  // ------------------------------------------------------------------------------------------------------- pictures
  const pictures = new Map(field.pictures.map((picture) => [picture.name, picture]));
  function tileImage(tile) {
    if (!tile.image) {
      tile.image = new Image();
      tile.image.onload = () => { tile.ready = true; draw(); drawCutouts(); };
      tile.image.src = "data:image/jpeg;base64," + tile.jpeg;
      tile.jpeg = null;
    }
    return tile.ready ? tile.image : null;
  }
  function drawPicture(context, name, view) {
    const { bin, tiles } = pictures.get(name);
    context.imageSmoothingEnabled = view.scale * bin < 1.5;
    for (const tile of tiles) {  // tile: x, y of its upper left corner in the mosaic, width, height in mosaic pixels
      const left = (tile.x - view.x) * view.scale + view.width / 2;
      const top = (view.y - tile.y) * view.scale + view.height / 2;
      const [w, h] = [tile.width * view.scale, tile.height * view.scale];
      if (left > view.width || top > view.height || left + w < 0 || top + h < 0) continue;
      const image = tileImage(tile);
      if (image) context.drawImage(image, left, top, w, h);
    }
  }

  // ------------------------------------------------------------------------------------------------------- outlines
  const RADIUS = field.radius;
  function addOutline(path, table, i) {
    const shape = table.shapes[i];
    if (shape.length === 0) {
      const [x, y] = [table.x[i], table.y[i]];
      path.moveTo(x + RADIUS, y);
      path.arc(x, y, RADIUS, 0, 2 * Math.PI);
    } else if (typeof shape[0] === "number") {
      path.rect(shape[0], shape[1], shape[2] - shape[0], shape[3] - shape[1]);
    } else {
      for (const loop of shape) {  // differences of half pixels
        let x = 0, y = 0;
        for (let k = 0; k < loop.length; k += 2) {
          x += loop[k]; y += loop[k + 1];
          if (k === 0) path.moveTo(X0 + (2 * x + 1) / 4, Y0 + (2 * y + 1) / 4);
          else path.lineTo(X0 + (2 * x + 1) / 4, Y0 + (2 * y + 1) / 4);
        }
        path.closePath();
      }
    }
  }
  const kindOfTruth = (i, side) => field.truth.kinds[side][i];
  function* members(kind, side) {  // [table, row] of all objects of a layer
    const found = field.catalogues[side];
    if (kind === "truth") {
      for (let i = 0; i < field.truth.x.length; i++) if (kindOfTruth(i, side) !== "i") yield [field.truth, i];
      return;
    }
    const [own, theirs] = { right: ["c", ""], false: ["f", ""], missed: ["", "m"], faint: ["e", "i"] }[kind];
    for (let i = 0; i < found.x.length; i++) if (own && found.kinds[i] === own) yield [found, i];
    for (let i = 0; i < field.truth.x.length; i++) if (theirs && kindOfTruth(i, side) === theirs) yield [field.truth, i];
  }
  const paths = new Map();
  function layerPath(kind) {
    const key = kind + state.side;
    if (!paths.has(key)) {
      const path = new Path2D();
      for (const [table, i] of members(kind, state.side)) addOutline(path, table, i);
      paths.set(key, path);
    }
    return paths.get(key);
  }
  function stroke(context, path, view, ink, width, dash) {
    context.save();
    context.translate(view.width / 2, view.height / 2);
    context.scale(view.scale, -view.scale);
    context.translate(-view.x, -view.y);
    context.lineWidth = width / view.scale;
    context.setLineDash(dash.map((length) => length / view.scale));
    context.strokeStyle = ink;
    context.stroke(path);
    context.restore();
  }

  // ----------------------------------------------------------------------------------------------------------- view
  const { prepare } = charts;
  let waiting = false;
  function draw() {
    if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; drawNow(); }); }
  }
  function drawNow() {
    const { context, width, height } = prepare(canvas);
    const view = { ...state, width, height };
    context.fillStyle = "#0b0f17";
    context.fillRect(0, 0, width, height);
    drawPicture(context, state.picture, view);
    for (const layer of LAYERS) {
      if (state.shown[layer.kind]) {
        stroke(context, layerPath(layer.kind), view, layer.color, layer.width, layer.dash);
      }
    }
    if (state.chosen) drawChosen(context, view);
    drawScaleBar(context, view);
  }
  function drawChosen(context, view) {
    const [x, y] = state.chosen.at;
    const [sx, sy] = [(x - view.x) * view.scale + view.width / 2, (view.y - y) * view.scale + view.height / 2];
    const size = Math.max(14, state.chosen.size * view.scale * 0.75);
    context.strokeStyle = "#ffffff";
    context.lineWidth = 2;
    for (const [a, b] of [[-1, -1], [1, -1], [1, 1], [-1, 1]]) {
      context.beginPath();
      context.moveTo(sx + a * size, sy + b * size * 0.55);
      context.lineTo(sx + a * size, sy + b * size);
      context.lineTo(sx + a * size * 0.55, sy + b * size);
      context.stroke();
    }
  }
  function drawScaleBar(context, view) {
    const perPixel = field.arcsec_per_pixel || 1;
    const unit = field.arcsec_per_pixel ? "\u2033" : " px";
    const wanted = 110 / view.scale * perPixel;
    const power = 10 ** Math.floor(Math.log10(wanted));
    const length = [5, 2, 1].map((factor) => factor * power).find((value) => value <= wanted);
    const pixels = length / perPixel * view.scale;
    const y = view.height - 14;
    context.strokeStyle = context.fillStyle = "#ffffff";
    context.lineWidth = 2;
    context.beginPath();
    context.moveTo(14, y - 4); context.lineTo(14, y); context.lineTo(14 + pixels, y); context.lineTo(14 + pixels, y - 4);
    context.stroke();
    context.font = "12px system-ui, sans-serif";
    context.fillText(Number(length.toPrecision(3)) + unit, 18, y - 6);
  }
  const smallest = () => 0.5 * Math.min(canvas.clientWidth / WIDTH, canvas.clientHeight / HEIGHT);
  function moveTo(x, y, scale) {
    state.scale = Math.min(Math.max(scale, smallest()), 40);
    state.x = Math.min(Math.max(x, X0), X0 + WIDTH);
    state.y = Math.min(Math.max(y, Y0), Y0 + HEIGHT);
    draw();
  }
  function zoom(factor, sx = canvas.clientWidth / 2, sy = canvas.clientHeight / 2) {
    const [x, y] = toWorld(sx, sy);
    const scale = Math.min(Math.max(state.scale * factor, smallest()), 40);
    moveTo(x - (sx - canvas.clientWidth / 2) / scale, y + (sy - canvas.clientHeight / 2) / scale, scale);
  }
  const toWorld = (sx, sy) => [
    state.x + (sx - canvas.clientWidth / 2) / state.scale, state.y - (sy - canvas.clientHeight / 2) / state.scale,
  ];
  function whole() {
    moveTo(X0 + WIDTH / 2, Y0 + HEIGHT / 2,
           Math.min(canvas.clientWidth / WIDTH, canvas.clientHeight / HEIGHT));
  }

  // ------------------------------------------------------------------------------------------------------- choosing
  const visible = () => LAYERS.filter((layer) => state.shown[layer.kind]);
  function pick(sx, sy) {
    const [x, y] = toWorld(sx, sy);
    let best = null, least = Infinity;
    for (const layer of visible()) {
      for (const [table, i] of members(layer.kind, state.side)) {
        const distance = Math.hypot(table.x[i] - x, table.y[i] - y);
        const reach = Math.max(12 / state.scale, table.size[i] / 2);
        if (distance < reach && distance / reach < least) { least = distance / reach; best = [table, i]; }
      }
    }
    return best;
  }
  function choose(found, center = false) {
    if (!found) { state.chosen = null; showCard(); draw(); return; }
    const [table, i] = found;
    const truth = table === field.truth ? i : table.match[i];
    const rows = field.catalogues.map((side, k) => (
      side === table ? i : truth >= 0 ? field.truth.match[k][truth] : -1
    ));
    state.chosen = { table, i, truth, rows, at: [table.x[i], table.y[i]], size: table.size[i] };
    if (center) moveTo(table.x[i], table.y[i], Math.max(state.scale, 4));
    showCard();
    draw();
  }
  function step(by) {
    const kind = $("among").value;
    const list = [...members(kind, state.side)].sort((p, q) => p[0].order[p[1]] - q[0].order[q[1]]);
    if (!list.length) { status.textContent = "There is none of these."; return; }
    const at = list.findIndex(([table, i]) => state.chosen && table === state.chosen.table && i === state.chosen.i);
    const next = at < 0 ? (by > 0 ? 0 : list.length - 1) : (at + by + list.length) % list.length;
    choose(list[next], true);
  }
  function find(text) {
    for (const table of [field.catalogues[state.side], field.truth]) {
      const i = table.id.findIndex((id) => String(id) === text.trim());
      if (i >= 0) { choose([table, i], true); return; }
    }
    status.textContent = "No object here has the id " + text.trim() + ".";
  }

  // ----------------------------------------------------------------------------------------------------------- card
  const WORDS = {
    c: "right", f: "false: no true object", e: "not counted: of an object that need not be found",
    m: "missed", t: "found", i: "need not be found",
  };
  function showCard() {
    card.replaceChildren();
    const chosen = state.chosen;
    if (!chosen) {
      element("p", "Choose an object: a click, or the keys N and P.", card, { className: "quiet" });
      status.textContent = "";
      return;
    }
    const isTruth = chosen.table === field.truth;
    const kind = isTruth ? kindOfTruth(chosen.i, state.side) : chosen.table.kinds[chosen.i];
    const title = (isTruth ? "True object " : "Detection ") + chosen.table.id[chosen.i];
    element("h3", title, card);
    element("p", WORDS[kind], card, { className: "verdict verdict-" + kind });
    status.textContent = title + ": " + WORDS[kind];
    showRedshift();
    showFluxes();
    showShear();
    showCutouts();
    showRows();
  }
  function value(table, i, name) {
    const column = table.columns.indexOf(name);
    return i < 0 || column < 0 ? null : table.values[column][i];
  }
  function showRows() {
    const { truth, rows } = state.chosen;
    const sides = field.catalogues.map((side, k) => [side.name, side, rows[k]]).concat([["truth", field.truth, truth]]);
    const names = [...new Set(sides.flatMap(([, table, i]) => (i < 0 ? [] : table.columns)))];
    const wrap = element("div", null, card, { className: "wide rows" });
    const body = element("table", null, wrap);
    const head = element("tr", null, element("thead", null, body));
    for (const text of ["", ...sides.map(([name]) => name)]) element("th", text, head, { scope: "col" });
    const lines = element("tbody", null, body);
    for (const name of names) {
      const line = element("tr", null, lines);
      const label = element("th", name, line, { scope: "row" });
      if (field.units[name]) element("span", " " + field.units[name], label, { className: "unit" });
      for (const [, table, i] of sides) element("td", value(table, i, name) ?? "\u2013", line);
    }
  }

  // ------------------------------------------------------------------------------------------------------- diagrams
  const nameOf = (k) => (field.catalogues.length > 1 ? field.catalogues[k].name : "predicted");
  function diagram(kind, label) {
    const target = element("canvas", null, card, { className: kind });
    target.setAttribute("role", "img");
    target.setAttribute("aria-label", label);
    return target;
  }
  function showRedshift() {
    const { rows, truth } = state.chosen;
    const drawn = field.catalogues
      .map((side, k) => ({ pdfs: side.pdfs, i: rows[k], k, name: nameOf(k) }))
      .filter(({ pdfs, i }) => pdfs && i >= 0 && (pdfs.grid ? pdfs.grid.rows[i] : pdfs.rows[i]).length);
    if (!drawn.length) {
      element("p", "No redshift density: " + (field.catalogues.some((side) => side.pdfs)
        ? "not detected, or its row has none." : "the catalogue has none."), card, { className: "quiet" });
      return;
    }
    const zTrue = value(field.truth, truth, "redshift");
    charts.redshift(diagram("pdf", "Redshift density" + (zTrue === null ? "" : "; true redshift " + zTrue)), drawn, zTrue);
  }
  function fluxOf(side, i, band) {  // its density, else a normal distribution of its error; null where it has neither
    const held = side.fluxes[band];
    if (held && held.rows[i].length) return { row: held.rows[i], lower: held.lower };
    const [flux, error] = [value(side, i, "flux_" + band), value(side, i, "fluxerr_" + band)];
    return flux === null || !(error > 0) ? null : { row: [1, flux, error], lower: null };
  }
  function trueFlux(i, band) {
    const [flux, magnitude] = [value(field.truth, i, "flux_" + band), value(field.truth, i, "mag_" + band)];
    return flux ?? (magnitude === null ? null : 10 ** (0.4 * (31.4 - magnitude)));
  }
  function showFluxes() {
    const { rows, truth } = state.chosen;
    const drawn = field.catalogues.map((side, k) => ({
      k, name: nameOf(k),
      bands: Object.fromEntries(field.bands.map((band) => [band, rows[k] < 0 ? null : fluxOf(side, rows[k], band)])
        .filter(([, found]) => found)),
    })).filter(({ bands }) => Object.keys(bands).length);
    if (!drawn.length) return;
    const truths = Object.fromEntries(field.bands.map((band) => [band, trueFlux(truth, band)]));
    charts.fluxes(diagram("sed", "Fluxes of " + field.bands.join(", ")), field.bands, drawn, truths);
  }
  function showShear() {
    const { rows, truth } = state.chosen;
    const pair = (table, i, names) => names.map((name) => value(table, i, name));
    const drawn = field.catalogues.map((side, k) => ({
      k, g: pair(side, rows[k], ["g1", "g2"]), err: pair(side, rows[k], ["g1_err", "g2_err"]),
      covariance: value(side, rows[k], "g12_cov") ?? 0,
    })).filter(({ g }) => g[0] !== null && g[1] !== null);
    if (!drawn.length) return;
    const known = pair(field.truth, truth, ["g1", "g2"]);
    const words = drawn.map(({ g, err, k }) => nameOf(k) + ": g1 " + g[0] + (err[0] === null ? "" : " \u00b1 " + err[0]) +
      ", g2 " + g[1] + (err[1] === null ? "" : " \u00b1 " + err[1]));
    if (known[0] !== null) words.push("true (cross): g1 " + known[0] + ", g2 " + known[1]);
    const line = element("div", null, card, { className: "shears" });
    const target = diagram("shear", "Shear. " + words.join("; "));
    line.append(target);
    const told = element("div", null, line, { className: "quiet" });
    for (const text of ["Shear, 1 and 2 sigma", ...words]) element("div", text, told);
    charts.shear(target, drawn, known[0] === null ? null : known);
  }

  // -------------------------------------------------------------------------------------------------------- cutouts
  function showCutouts() {
    const box = element("div", null, card, { className: "cutouts" });
    for (const picture of field.pictures) {
      const figure = element("figure", null, box);
      const target = element("canvas", null, figure, { className: "cutout" });
      target.dataset.picture = picture.name;
      target.setAttribute("role", "img");
      target.setAttribute("aria-label", "Cutout, " + picture.name);
      element("figcaption", picture.name, figure);
    }
    drawCutouts();
  }
  function drawCutouts() {
    if (!state.chosen) return;
    const { at, size, table, i, truth, rows } = state.chosen;
    const path = new Path2D(), own = new Path2D();
    addOutline(own, table, i);
    if (truth >= 0 && table !== field.truth) addOutline(path, field.truth, truth);
    if (table === field.truth && rows[state.side] >= 0) addOutline(path, field.catalogues[state.side], rows[state.side]);
    for (const target of card.querySelectorAll(".cutout")) {
      const { context, width, height } = prepare(target);
      const view = { x: at[0], y: at[1], scale: width / Math.max(24, 2.2 * size), width, height };
      context.fillStyle = "#0b0f17";
      context.fillRect(0, 0, width, height);
      drawPicture(context, target.dataset.picture, view);
      stroke(context, path, view, "#38bdf8", 1, [3, 2]);
      stroke(context, own, view, "#fde047", 1.2, []);
    }
  }

  // ------------------------------------------------------------------------------------------------------- controls
  function controls() {
    const chooser = $("picture");
    for (const picture of field.pictures) element("option", picture.label, chooser, { value: picture.name });
    chooser.onchange = () => { state.picture = chooser.value; draw(); };
    const sides = $("sides");
    if (field.catalogues.length > 1) {
      field.catalogues.forEach((side, k) => element("option", side.name, sides, { value: k }));
      sides.onchange = () => { state.side = Number(sides.value); counts(); showCard(); draw(); };
    } else sides.parentElement.remove();
    for (const layer of LAYERS) {
      const label = element("label", null, $("layers"));
      const input = element("input", null, label, { type: "checkbox", checked: layer.shown, value: layer.kind });
      const line = element("span", null, label, { className: "swatch" });
      line.style.borderTop = "3px " + (layer.dash.length ? (layer.dash[0] < 4 ? "dotted " : "dashed ") : "solid ") + layer.color;
      element("span", layer.label, label);
      element("span", "", label, { className: "count" }).dataset.kind = layer.kind;
      input.onchange = () => { state.shown[layer.kind] = input.checked; draw(); };
      element("option", layer.label, $("among"), { value: layer.kind });
    }
    $("among").value = "false";
    const actions = { in: () => zoom(1.5), out: () => zoom(1 / 1.5), whole, next: () => step(1), previous: () => step(-1) };
    for (const button of root.querySelectorAll("button")) button.onclick = actions[button.dataset.action];
    $("find").onsubmit = (event) => { event.preventDefault(); find($("find").elements.id.value); };
    counts();
  }
  function counts() {
    for (const span of root.querySelectorAll(".count")) {
      let count = 0;
      for (const member of members(span.dataset.kind, state.side)) count += member.length > 0;
      span.textContent = " " + count.toLocaleString("en");
    }
  }
  const KEYS = {
    "+": () => zoom(1.3), "=": () => zoom(1.3), "-": () => zoom(1 / 1.3), 0: whole, n: () => step(1), p: () => step(-1),
    ArrowLeft: () => moveTo(state.x - 60 / state.scale, state.y, state.scale),
    ArrowRight: () => moveTo(state.x + 60 / state.scale, state.y, state.scale),
    ArrowUp: () => moveTo(state.x, state.y + 60 / state.scale, state.scale),
    ArrowDown: () => moveTo(state.x, state.y - 60 / state.scale, state.scale),
    Escape: () => choose(null),
    Enter: () => choose(pick(canvas.clientWidth / 2, canvas.clientHeight / 2)),
  };
  canvas.addEventListener("keydown", (event) => {
    const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (action && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); action(); }
  });
  canvas.addEventListener("wheel", (event) => {
    // The page scrolls on until the picture has been clicked.
    if (document.activeElement !== canvas && !event.ctrlKey) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * 0.0015), event.offsetX, event.offsetY);
  }, { passive: false });
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, moved: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    const rect = canvas.getBoundingClientRect();
    const [x, y] = toWorld(event.clientX - rect.left, event.clientY - rect.top);
    $("place").textContent = "x " + (x - 0.5).toFixed(1) + ", y " + (y - 0.5).toFixed(1);
    if (!drag) return;
    const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!drag.moved && Math.hypot(dx, dy) < 4) return;
    if (!drag.moved) canvas.setPointerCapture(event.pointerId);
    drag = { x: event.clientX, y: event.clientY, moved: true };
    moveTo(state.x - dx / state.scale, state.y + dy / state.scale, state.scale);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) {
      const rect = canvas.getBoundingClientRect();
      choose(pick(event.clientX - rect.left, event.clientY - rect.top));
    }
    drag = null;
  });
  controls();
  showCard();
  whole();
  new ResizeObserver(() => moveTo(state.x, state.y, state.scale)).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showCard);
}
