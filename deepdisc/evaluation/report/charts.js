// The small diagrams of an object's card: redshift densities, fluxes of all bands, the shear.
// Each takes a canvas, what to draw of each catalogue (with its ink and name), and the true value or null.
const charts = (() => {
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const inkOf = (k) => color(["--blue", "--orange"][k]);

  function prepare(target) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [target.clientWidth, target.clientHeight];
    if (target.width !== Math.round(width * ratio) || target.height !== Math.round(height * ratio)) {
      target.width = Math.round(width * ratio); target.height = Math.round(height * ratio);
    }
    const context = target.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "11px system-ui, sans-serif";
    return { context, width, height };
  }
  function line(context, points, ink, width = 1, dash = []) {
    context.strokeStyle = ink; context.lineWidth = width; context.setLineDash(dash);
    context.beginPath();
    points.forEach(([x, y], n) => (n ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.stroke();
    context.setLineDash([]);
  }
  const step = (range) => {
    const power = 10 ** Math.floor(Math.log10(range / 4));
    return [1, 2, 5, 10].map((factor) => factor * power).find((size) => range / size <= 6);
  };
  const plain = (value) => Number(value.toPrecision(6));

  // A mixture is amplitude (truncation included), mean, sigma, of each component; 0 below its bound.
  function density(row, lower, z) {
    if (lower !== null && z < lower) return 0;
    let sum = 0;
    for (let k = 0; k < row.length; k += 3) {
      sum += row[k] / row[k + 2] * Math.exp(-0.5 * ((z - row[k + 1]) / row[k + 2]) ** 2);
    }
    return sum / Math.sqrt(2 * Math.PI);
  }
  function gridded({ low, high }, row, z) {
    const at = (z - low) / (high - low) * (row.length - 1), k = Math.floor(at);
    return k < 0 || k >= row.length - 1 ? 0 : row[k] + (at - k) * (row[k + 1] - row[k]);
  }
  function ends(row, lower, sigmas) {  // where a mixture is worth drawing
    let low = Infinity, high = -Infinity;
    for (let k = 0; k < row.length; k += 3) {
      if (row[k] < 0.005) continue;
      low = Math.min(low, row[k + 1] - sigmas * row[k + 2]);
      high = Math.max(high, row[k + 1] + sigmas * row[k + 2]);
    }
    return lower === null ? [low, high] : [Math.max(low, lower), Math.max(high, lower)];
  }

  // -------------------------------------------------------------------------------------------------------- redshift
  function redshift(target, sides, truth) {  // sides: { pdfs, i, k, name }
    const { context, width, height } = prepare(target);
    const [left, right, top, bottom] = [38, width - 10, 22, height - 32];
    const rowOf = ({ pdfs, i }) => (pdfs.grid ? pdfs.grid.rows[i] : pdfs.rows[i]);
    const reachOf = (side) => (side.pdfs.grid ? side.pdfs.grid.high : ends(rowOf(side), side.pdfs.lower, 4)[1]);
    const reach = Math.max(0.1, truth ?? 0, ...sides.map(reachOf)) * 1.04;
    const at = Array.from({ length: 401 }, (_, k) => reach * k / 400);
    const curves = sides.map((side) => at.map((z) => (
      side.pdfs.grid ? gridded(side.pdfs.grid, rowOf(side), z) : density(rowOf(side), side.pdfs.lower, z))));
    const peak = Math.max(...curves.flat(), 1e-9) * 1.08;
    const px = (z) => left + (right - left) * z / reach, py = (p) => bottom - (bottom - top) * p / peak;
    context.fillStyle = color("--ink");
    context.textAlign = "center";
    for (let z = 0, by = step(reach); z <= reach; z += by) {
      line(context, [[px(z), top], [px(z), bottom]], color("--line"));
      context.fillText(plain(z), px(z), bottom + 14);
    }
    context.fillText("redshift", (left + right) / 2, bottom + 28);
    valueAxis(context, 0, peak, left, right, py);
    context.fillText("p(z)", 4, 12);
    curves.forEach((curve, n) => {
      const ink = inkOf(sides[n].k);
      line(context, curve.map((p, m) => [px(at[m]), py(p)]), ink, 2);
      context.lineTo(px(reach), bottom); context.lineTo(px(0), bottom);
      context.globalAlpha = 0.18; context.fillStyle = ink; context.fill(); context.globalAlpha = 1;
    });
    legend(context, sides, truth === null ? null : "true z = " + truth, left);
    if (truth !== null) line(context, [[px(truth), top], [px(truth), bottom]], color("--red"), 1.6, [5, 3]);
  }
  function valueAxis(context, low, high, left, right, py) {
    context.fillStyle = color("--ink");
    context.textAlign = "right";
    const by = step(high - low);
    for (let v = Math.ceil(low / by) * by; v <= high; v += by) {
      line(context, [[left, py(v)], [right, py(v)]], color("--line"));
      context.fillText(plain(v), left - 4, py(v) + 4);
    }
    context.textAlign = "left";
  }
  function legend(context, sides, truth, left) {
    const items = sides.map(({ name, k }) => [name, inkOf(k)]);
    if (truth !== null) items.push([truth, color("--red")]);
    let x = left + 6;
    for (const [text, ink] of items) {
      const short = text.length > 22 ? "\u2026" + text.slice(-21) : text;
      context.fillStyle = ink; context.fillRect(x, 6, 12, 4);
      context.fillStyle = color("--ink"); context.fillText(short, x + 16, 12);
      x += 26 + context.measureText(short).width;
    }
  }

  // ---------------------------------------------------------------------------------------------------------- fluxes
  // A violin for each band; with two catalogues each has one half of it. sides: { k, name, bands: {band: {row, lower}} }
  function fluxes(target, bands, sides, truth) {
    const { context, width, height } = prepare(target);
    const [left, right, top, bottom] = [46, width - 8, 22, height - 18];
    const found = sides.flatMap((side) => Object.values(side.bands).map(({ row, lower }) => ends(row, lower, 3.2)));
    const known = bands.map((band) => truth[band]).filter((value) => value !== null && value !== undefined);
    const low = Math.min(0, ...found.map(([a]) => a), ...known), high = Math.max(...found.map(([, b]) => b), ...known);
    const span = (high - low || 1) * 1.06;
    const py = (f) => bottom - (bottom - top) * (f - low) / span;
    valueAxis(context, low, low + span, left, right, py);
    context.fillText("nJy", 4, 12);
    const room = (right - left) / bands.length;
    bands.forEach((band, n) => {
      const middle = left + room * (n + 0.5);
      context.fillStyle = color("--ink"); context.textAlign = "center";
      context.fillText(band.length * 6 > room ? band.slice(0, Math.max(1, Math.floor(room / 6))) : band, middle, bottom + 14);
      sides.forEach((side, m) => {
        if (side.bands[band]) violin(context, side.bands[band], middle, 0.42 * room, py, inkOf(side.k), sides.length > 1 ? m : null);
      });
      if (truth[band] !== null && truth[band] !== undefined) {
        const y = py(truth[band]);
        line(context, [[middle - 0.45 * room, y], [middle + 0.45 * room, y]], color("--red"), 1.8);
      }
    });
    context.textAlign = "left";
    legend(context, sides, known.length ? "true" : null, left);
  }
  function violin(context, { row, lower }, middle, half, py, ink, side) {
    const [low, high] = ends(row, lower, 3.2);
    const at = Array.from({ length: 61 }, (_, k) => low + (high - low) * k / 60);
    const values = at.map((f) => density(row, lower, f));
    const scale = half / Math.max(...values, 1e-30);
    const path = [[side === 1 ? 0 : -1, at], [side === 0 ? 0 : 1, [...at].reverse()]].flatMap(([sign, places]) => (
      places.map((f) => [middle + sign * scale * density(row, lower, f), py(f)])));
    line(context, path, ink, 1.2);
    context.globalAlpha = 0.25; context.fillStyle = ink; context.fill(); context.globalAlpha = 1;
    if (py(low) - py(high) < 3) line(context, [[middle - half, py(at[30])], [middle + half, py(at[30])]], ink, 2);
  }

  // ----------------------------------------------------------------------------------------------------------- shear
  // The plane of g1 and g2: a point and its error ellipses (1 and 2 sigma). sides: { k, name, g: [g1, g2], err: [...] }
  function shear(target, sides, truth) {
    const { context, width, height } = prepare(target);
    const middle = [width / 2, height / 2], half = Math.min(width, height) / 2 - 14;
    const sizes = sides.flatMap(({ g, err }) => g.map((value, n) => Math.abs(value) + 2 * (err[n] ?? 0)));
    const reach = Math.max(0.05, ...sizes, ...(truth ?? [0]).map(Math.abs)) * 1.08;
    const at = ([a, b]) => [middle[0] + half * a / reach, middle[1] - half * b / reach];
    line(context, [at([-reach, 0]), at([reach, 0])], color("--line"));
    line(context, [at([0, -reach]), at([0, reach])], color("--line"));
    context.fillStyle = color("--ink");
    context.fillText("g1", at([reach, 0])[0] - 6, middle[1] - 4);
    context.fillText("g2", middle[0] + 4, 10);
    context.fillText("\u00b1" + plain(Number(reach.toPrecision(2))), 2, height - 3);
    for (const { g, err, covariance, k } of sides) {
      const [x, y] = at(g);
      context.strokeStyle = context.fillStyle = inkOf(k);
      context.beginPath(); context.arc(x, y, 2.5, 0, 7); context.fill();
      for (const sigmas of err[0] !== null && err[1] !== null ? [1, 2] : []) {
        context.globalAlpha = 1 / sigmas; context.lineWidth = 1.4;
        // Half the axes of the ellipse are the square roots of the covariance's eigenvalues.
        const [a, b] = [err[0] ** 2, err[1] ** 2];
        const [sum, turn] = [(a + b) / 2, Math.hypot((a - b) / 2, covariance)];
        const angle = -0.5 * Math.atan2(2 * covariance, a - b), scale = half * sigmas / reach;
        context.beginPath();
        context.ellipse(x, y, scale * Math.sqrt(sum + turn), scale * Math.sqrt(Math.max(sum - turn, 0)), angle, 0, 7);
        context.stroke(); context.globalAlpha = 1;
      }
    }
    if (truth) {
      const [x, y] = at(truth);
      line(context, [[x - 5, y - 5], [x + 5, y + 5]], color("--red"), 1.8);
      line(context, [[x - 5, y + 5], [x + 5, y - 5]], color("--red"), 1.8);
    }
  }
  return { prepare, redshift, fluxes, shear };
})();
