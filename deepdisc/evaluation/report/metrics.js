"use strict";
// The table of all figures is made when it is opened: most readers never do, and it has thousands of lines.
(() => {
  const place = document.getElementById("all-figures");
  place.querySelector("summary").addEventListener("click", () => {
    if (place.querySelector("table")) return;
    const metrics = JSON.parse(document.getElementById("metrics").textContent);
    const found = new Map();
    const walk = (value, path) => {
      if (value !== null && typeof value === "object") {
        for (const [name, item] of Object.entries(value)) {
          if (name === "provenance") continue;
          walk(item, Array.isArray(value) ? path + "[" + name + "]" : path ? path + "." + name : name);
        }
      } else found.set(path, value);
    };
    walk(metrics, "");
    const table = document.createElement("table");
    const line = (cells, tag) => {
      const row = table.insertRow();
      for (const text of cells) row.append(Object.assign(document.createElement(tag), { textContent: text }));
    };
    const shown = (value) => (typeof value === "number" ? Number(value.toPrecision(6)) : value ?? "");
    line(["figure", "value", "error", "68 % from", "to"], "th");
    for (const [path, value] of found) {
      const whole = path.replace(/_(err|low|high)$/, "");
      if (whole !== path && found.has(whole)) continue;
      line([path, shown(value), ...["err", "low", "high"].map((end) => shown(found.get(path + "_" + end)))], "td");
    }
    place.append(Object.assign(document.createElement("div"), { className: "wide" }));
    place.lastChild.append(table);
  });
})();
