// Each field's view is opened when the field is first shown; with several, the reader chooses which.
(() => {
  const sections = [...document.querySelectorAll(".of-field")];
  const opened = new Set();
  function open(number) {
    const source = document.getElementById("field-data-" + number);
    if (!source || opened.has(number)) return;  // no mosaic: no view
    opened.add(number);
    openField((sections[number] ?? document).querySelector(".field"), JSON.parse(source.textContent));
  }
  function show(number) {
    sections.forEach((section, k) => { section.hidden = k !== number; });
    open(number);
  }
  for (const choice of document.querySelectorAll("input[name=field]")) choice.onchange = () => show(Number(choice.value));
  show(Number(document.querySelector("input[name=field]:checked")?.value ?? 0));
})();
