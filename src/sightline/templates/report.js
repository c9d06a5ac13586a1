// The page reads well without this: it only narrows down the gallery.
"use strict";
const form = document.getElementById("filters");
if (form) {
  const cards = [...document.querySelectorAll(".card")];
  const more = document.getElementById("more");
  const apply = () => {
    const wanted = { true: form.elements.true.value, predicted: form.elements.predicted.value };
    const filtered = wanted.true !== "" || wanted.predicted !== "";
    let shown = 0;
    for (const card of cards) {
      card.hidden = Object.keys(wanted).some((key) => wanted[key] !== "" && card.dataset[key] !== wanted[key]);
      shown += !card.hidden;
    }
    if (more) more.open = filtered;
    form.querySelector("output").value = filtered ? `${shown} of these ${cards.length} match` : "";
  };
  form.hidden = false;
  form.addEventListener("change", apply);
  form.addEventListener("reset", () => setTimeout(apply)); // after the browser has emptied the fields
  for (const button of document.querySelectorAll(".pair")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      form.elements.true.value = button.dataset.true;
      form.elements.predicted.value = button.dataset.predicted;
      apply();
      document.getElementById("mistakes").scrollIntoView();
      form.elements.true.focus({ preventScroll: true });
    });
  }
}
