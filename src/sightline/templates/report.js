// The gallery: what the page's data says is cut out of sheets, coloured, filtered, sorted and marked here.
// Everything else in the page is there without this script. Names go in as text, never as HTML.
"use strict";
const start = async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("controls");
  const list = document.getElementById("cards");
  const { items, classes, now, before, tile: [width, height] } = data;
  const FOR = [213, 94, 0], AGAINST = [0, 114, 178]; // as in heatmaps/drawing.py
  const MARGIN_STRENGTH = 0.7, PRINTED = 24, ROOM = 24, CONFIDENCE_BANDS = { 0.9: [0.9, 2], 0.5: [0.5, 0.9], 0: [-1, 0.5] };

  // ---- what is in the data
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const tables = Object.fromEntries(Object.entries(data.colours).map(([name, text]) => [name, bytes(text)]));
  for (const said of [now, before]) {
    if (!said) continue;
    said.raw = new Int16Array(bytes(said.maps).buffer);
    let count = 0;
    said.row = items.id.map((_, i) => (said.mapped[i] ? count++ : -1));
  }
  const sheets = data.sheets.map((uri) => Object.assign(new Image(), { src: uri }));
  await Promise.all(sheets.map((sheet) => sheet.decode()));

  // ---- painting
  const grid = (said, i, t) => {
    const cells = said.grid[0] * said.grid[1];
    const first = (said.row[i] * said.targets.length + t) * cells;
    return said.raw.subarray(first, first + cells);
  };
  // For each pixel along one side: two cells and the weight of the second. Cells' centres are interpolated, edges are constant.
  const taps = (cells, pixels, sharp) =>
    Array.from({ length: pixels }, (_, x) => {
      const at = ((x + 0.5) * cells) / pixels - 0.5;
      if (sharp) return [Math.floor(at + 0.5), Math.floor(at + 0.5), 0];
      const clipped = Math.min(Math.max(at, 0), cells - 1), low = Math.floor(clipped);
      return [low, Math.min(low + 1, cells - 1), clipped - low];
    });
  const upsampled = (values, [rows, columns], sharp) => {
    const across = taps(columns, width, sharp), down = taps(rows, height, sharp);
    const out = new Float32Array(width * height);
    for (let y = 0; y < height; y++) {
      const [a, b, v] = down[y];
      for (let x = 0; x < width; x++) {
        const [c, d, u] = across[x];
        const top = values[a * columns + c] * (1 - u) + values[a * columns + d] * u;
        const bottom = values[b * columns + c] * (1 - u) + values[b * columns + d] * u;
        out[y * width + x] = top * (1 - v) + bottom * v;
      }
    }
    return out;
  };
  const peak = (maps) => maps.reduce((most, map) => map.reduce((m, value) => Math.max(m, Math.abs(value)), most), 0) || 1;

  // Blend a map into an image's pixels (RGBA), as heatmaps.drawing.overlay and diverging do.
  const blend = (pixels, said, i, target, view) => {
    const margin = target === "margin";
    const kin = said.targets.filter((t) => (t === "margin") === margin);
    const own = grid(said, i, said.targets.indexOf(target));
    if (!margin && Math.max(...own) <= 0) return;
    const positive = (t) => (margin ? grid(said, i, said.targets.indexOf(t)) : grid(said, i, said.targets.indexOf(t)).map((v) => Math.max(v, 0)));
    const maps = kin.map((t) => upsampled(positive(t), said.grid, view.cells));
    const heat = maps[kin.indexOf(target)], most = peak(maps);
    const table = tables[view.colours], strength = margin ? view.margin : view.opacity;
    for (let p = 0; p < heat.length; p++) {
      const value = heat[p] / most;
      if (Math.abs(value) < view.threshold) continue;
      const at = 3 * Math.min(255, Math.floor(value * 256));
      const alpha = margin ? strength * Math.abs(value) : strength;
      for (let c = 0; c < 3; c++) {
        const colour = margin ? (value > 0 ? FOR : AGAINST)[c] : table[at + c];
        pixels[4 * p + c] = Math.round((1 - alpha) * pixels[4 * p + c] + alpha * colour);
      }
    }
  };
  const paint = (canvas, i, said, target, view) => {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const sheet = sheets[Math.floor(i / data.tiles)], place = i % data.tiles;
    context.drawImage(sheet, width * (place % data.columns), height * Math.floor(place / data.columns), width, height, 0, 0, width, height);
    if (!said || said.row[i] < 0) return;
    const picture = context.getImageData(0, 0, width, height);
    blend(picture.data, said, i, target, view);
    context.putImageData(picture, 0, 0);
  };

  // ---- words
  const per = (share) => (share > 0 && share < 0.0005 ? "<0.1 %" : share < 1 && share >= 0.9995 ? ">99.9 %" : `${(100 * share).toFixed(1)} %`);
  const where = (values, [rows, columns]) => {
    const best = values.indexOf(Math.max(...values));
    if (values[best] <= 0) return "no evidence";
    const third = (k, n) => Math.floor((3 * (k + 0.5)) / n);
    const down = ["upper", "middle", "lower"][third(Math.floor(best / columns), rows)];
    return `strongest at the ${down} ${["left", "centre", "right"][third(best % columns, columns)]}`;
  };
  const viewed = () => (before && state.side === "before" ? before : now); // what filters and figures go by
  const trusted = (said, i, target) => {
    const t = said.targets.indexOf(target);
    if (said.row[i] < 0 || t < 0) return "";
    if (target !== "margin" && Math.max(...grid(said, i, t)) <= 0) return "no evidence";
    return said.trust.length ? said.trust[said.row[i]][t] : "";
  };
  const described = (i, said) => `${items.id[i]}: true ${classes[items.true[i]]}, predicted ${classes[said.predicted[i]]}, ${said.confidence[i].toFixed(2)}`;
  const heatWords = (i, said, target) => {
    if (said.row[i] < 0) return "no heatmap of this image";
    const values = grid(said, i, said.targets.indexOf(target));
    const verdict = trusted(said, i, target), label = verdict && `; heatmap: ${verdict}`;
    if (target !== "margin") return `heatmap of the ${target} class: ${where(values, said.grid)}${label}`;
    return `heatmap of the margin: for the predicted class ${where(values, said.grid)}, for the true one ${where(values.map((v) => -v), said.grid)}${label}`;
  };

  // ---- marks, kept in this browser where it lets us
  const key = `sightline:${data.run}:${data.split}`;
  const marks = Object.create(null);
  try {
    for (const [id, own] of Object.entries(Object(JSON.parse(localStorage.getItem(key)))))
      if (typeof own?.label_error === "boolean") marks[id] = { label_error: own.label_error, cause: typeof own.cause === "string" ? own.cause : undefined };
  } catch { /* a page from a file may not be allowed to keep anything, and others may have written there */ }
  const kept = () => Object.keys(marks).filter((id) => marks[id].label_error || marks[id].cause);
  const mark = (i, change) => {
    const id = items.id[i], old = Object.hasOwn(marks, id) ? marks[id] : {};
    const wrong = Boolean(old.label_error), same = old.cause === change.cause;
    marks[id] = change.cause ? { label_error: wrong, cause: same ? undefined : change.cause } : { label_error: !wrong, cause: old.cause };
    try {
      localStorage.setItem(key, JSON.stringify(marks));
    } catch { /* as above */ }
    write(i);
    apply();
  };
  const exported = () => ({
    schema: 1,
    run: data.run,
    split: data.split,
    // What was marked and then not any more is told too, so that `sightline import` takes an earlier mark back.
    marks: Object.keys(marks).map((id) => ({
      id,
      ...((marks[id].label_error || !marks[id].cause) && { label_error: Boolean(marks[id].label_error) }),
      ...(marks[id].cause && { cause: marks[id].cause }),
    })),
  });

  // ---- cards
  const template = document.getElementById("card").content.firstElementChild;
  const figure = (card, kind) => {
    const shown = document.createElement("figure");
    shown.append(Object.assign(document.createElement("canvas"), { width, height, className: data.exact ? "pixels" : "" }), document.createElement("figcaption"));
    shown.firstChild.setAttribute("role", "img");
    shown.firstChild.setAttribute("aria-label", described(Number(card.dataset.i), kind === "before" ? before : now)); // until it is drawn
    shown.dataset.kind = kind;
    card.querySelector(".pictures").append(shown);
  };
  const cards = items.id.map((id, i) => {
    const card = template.cloneNode(true);
    card.dataset.i = i;
    card.querySelector(".id").textContent = id;
    if (!sheets.length || items.missing[i]) {
      card.querySelector(".pictures").replaceWith(Object.assign(document.createElement("p"), { className: "missing", textContent: sheets.length ? "this image is missing" : "no picture" }));
      return card;
    }
    figure(card, "image");
    if (before && before.targets.length) figure(card, "before");
    if (now.targets.length) figure(card, "after");
    return card;
  });
  const write = (i) => {
    const card = cards[i], flip = items.flip && items.flip[i];
    const said = viewed();
    card.querySelector(".p").textContent = classes[said.predicted[i]];
    card.querySelector(".t").textContent = classes[items.true[i]];
    if (flip) card.querySelector(".flip").textContent = { fixed: "✓ fixed", broken: "✗ broken", "still wrong": "= still wrong" }[flip] || "";
    const was = before && state.side === "both" ? `before: ${classes[before.predicted[i]]}, ${per(before.confidence[i])} sure · ` : "";
    const groups = items.causes[i].map((k) => data.causes[k].replaceAll("_", " "));
    const kind = items.kind && !["unexplained", "right"].includes(data.kinds[items.kind[i]]) ? ` · ${data.kinds[items.kind[i]]}` : "";
    const why = groups.length ? ` · ${groups.length === 1 && groups[0] === "unexplained" ? "" : "repaired by undoing: "}${groups.join(", ")}` : "";
    card.querySelector(".numbers").textContent = `${was}${per(said.confidence[i])} sure · true class ${per(said.p_true[i])} · loss ${said.loss[i].toFixed(2)}${kind}${why}`;
    const own = Object.hasOwn(marks, items.id[i]) ? marks[items.id[i]] : {};
    card.querySelector(".marks").textContent = [own.label_error && "✗ marked as a label error", own.cause && `marked: ${own.cause.replaceAll("_", " ")}`].filter(Boolean).join(" · ");
  };
  let version = 0;
  const draw = (card) => {
    if (card.dataset.drawn === String(version)) return;
    card.dataset.drawn = version;
    const i = Number(card.dataset.i);
    for (const shown of card.querySelectorAll("figure")) {
      const [canvas, caption] = shown.children;
      const said = { image: null, before, after: now }[shown.dataset.kind];
      shown.hidden = Boolean(said) && (!state.heat || (state.side !== "both" && before && state.side !== shown.dataset.kind));
      if (shown.hidden) continue;
      paint(canvas, i, said, state.of, state);
      canvas.setAttribute("aria-label", said ? `${described(i, said)}; ${heatWords(i, said, state.of)}` : described(i, now));
      const of = { predicted: said && classes[said.predicted[i]], true: classes[items.true[i]] }[state.of];
      const name = said ? [before ? shown.dataset.kind : state.of, document.createElement("bdi")] : ["image"];
      if (said) name[1].textContent = of ? ` ${of}` : before ? ` ${state.of}` : "";
      const verdict = said ? (said.row[i] < 0 ? "no heatmap" : trusted(said, i, state.of)) : "";
      caption.replaceChildren(...name, verdict ? `: ${verdict}` : "");
    }
  };
  const visible = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) visible.add(target);
      else visible.delete(target);
      if (isIntersecting) draw(target);
    }
  }, { rootMargin: "400px" });

  // ---- what is asked for: the form's fields, which the address keeps
  const VIEW = ["heat", "of", "side", "opacity", "threshold", "colours", "cells"];
  const fields = [...form.elements].filter((field) => field.name);
  const value = (field) => (field.type === "checkbox" ? (field.checked ? "1" : "0") : field.value);
  const set = (field, text) => (field.type === "checkbox" ? (field.checked = text === "1") : (field.value = text));
  const preset = Object.fromEntries(fields.map((field) => [field.name, value(field)]));
  const state = {};
  const read = () => {
    const given = { ...preset, ...Object.fromEntries(fields.map((field) => [field.name, value(field)])) };
    Object.assign(state, given, {
      heat: given.heat === "1",
      cells: given.cells === "1",
      side: given.side || "both",
      of: given.of || "predicted",
      opacity: Number(given.opacity),
      margin: given.opacity === preset.opacity ? MARGIN_STRENGTH : Number(given.opacity),
      threshold: Number(given.threshold),
    });
  };
  const address = () => {
    const changed = fields.filter((field) => value(field) !== preset[field.name]).map((field) => [field.name, value(field)]);
    const anchor = location.hash.slice(1).split("&")[0];
    const hash = changed.length ? `#mistakes&${new URLSearchParams(changed)}` : anchor && !anchor.includes("=") ? `#${anchor}` : " ";
    if (hash.trim() === location.hash) return;
    try {
      history.replaceState(null, "", hash.trim() || location.pathname + location.search);
    } catch { /* a page in a frame of its own may not change its address */ }
  };
  const fromAddress = () => {
    const [anchor, ...rest] = location.hash.slice(1).split("&");
    const asked = new URLSearchParams(rest.join("&"));
    for (const field of fields) set(field, asked.get(field.name) ?? preset[field.name]);
    for (const field of form.querySelectorAll("select")) if (field.selectedIndex < 0) field.value = preset[field.name];
    if (rest.length) document.getElementById(anchor)?.scrollIntoView();
  };
  const words = items.id.map((id, i) => `${id} ${classes[items.true[i]]} ${classes[now.predicted[i]]}`.toLowerCase());
  const wanted = {
    q: (i, text) => words[i].includes(text.toLowerCase()),
    true: (i, k) => items.true[i] === Number(k),
    predicted: (i, k) => viewed().predicted[i] === Number(k),
    flip: (i, kind) => items.flip[i] === kind,
    cause: (i, k) => items.causes[i].includes(Number(k)),
    trust: (i, verdict) => trusted(viewed(), i, state.of) === verdict,
    sure: (i, band) => CONFIDENCE_BANDS[band][0] <= viewed().confidence[i] && viewed().confidence[i] < CONFIDENCE_BANDS[band][1],
    kind: (i, k) => items.kind[i] === Number(k),
    marked: (i, how) => {
      const own = Object.hasOwn(marks, items.id[i]) ? marks[items.id[i]] : {};
      return { any: Boolean(own.label_error || own.cause), label: Boolean(own.label_error), none: !own.label_error && !own.cause }[how];
    },
  };
  const order = { // not of what is viewed: the same cards stay in sight when the other run's answers are
    loss: (i) => now.loss[i],
    margin: (i) => now.margin[i],
    sure: (i) => now.confidence[i],
    surest: (i) => items.surest[i],
    trust: (i) => (now.row[i] < 0 ? -2 : now.effect[now.row[i]]?.[now.targets.indexOf(state.of)] ?? -1),
  };
  // Only the first of the cards that are shown are in the page; more come as their end comes into sight, so that a change of
  // what is shown costs the same for ten cards and for a thousand.
  let shown = [], places = [], sorted = "", chosen = "", later;
  const end = document.createElement("div");
  list.after(end);
  const more = (count) => {
    list.append(...shown.slice(list.children.length, count));
    ending.unobserve(end); // so that it is told again where the end is
    ending.observe(end);
  };
  const ending = new IntersectionObserver(
    (entries) => entries.at(-1).isIntersecting && list.children.length < shown.length && more(list.children.length + ROOM),
    { rootMargin: "600px" },
  );
  // `again`: the same was asked for as the last time, and marks alone may have changed.
  const fill = (found, again) => {
    if (again && found.length === shown.length && found.every((card, k) => card === shown[k])) return;
    const count = again ? Math.max(list.children.length, ROOM) : ROOM, focused = current();
    shown = found;
    list.replaceChildren();
    more(count);
    if (focused?.isConnected) focused.focus({ preventScroll: true });
  };
  const apply = () => {
    read();
    const asked = Object.keys(wanted).filter((name) => state[name]);
    const sorting = `${state.sort} ${state.sort === "trust" ? state.of : ""}`;
    if (sorting !== sorted) {
      const by = order[state.sort] || order.loss;
      places = cards.map((_, i) => i).sort((a, b) => by(b) - by(a) || a - b);
      sorted = sorting;
    }
    const choice = JSON.stringify([sorting, asked.map((name) => [name, state[name]])]);
    fill(places.filter((i) => asked.every((name) => wanted[name](i, state[name]))).map((i) => cards[i]), choice === chosen);
    chosen = choice;
    form.querySelector("output").value = `${shown.length} of ${cards.length} shown here`;
    const count = kept().length, button = document.getElementById("export");
    button.disabled = !Object.keys(marks).length;
    button.textContent = count ? `Export ${count} mark${count === 1 ? "" : "s"}` : "Export marks";
    clearTimeout(later);
    later = setTimeout(address, 150); // a new address makes the browser style the whole page again: not while the person waits
  };
  let seen = "";
  const look = () => {
    read();
    const view = JSON.stringify(VIEW.map((name) => state[name]));
    if (view === seen) return;
    seen = view;
    version++;
    for (const i of cards.keys()) write(i);
    for (const card of visible) draw(card);
  };
  const refresh = () => {
    look();
    apply();
  };

  // ---- keys
  const current = () => (document.activeElement?.classList.contains("card") ? document.activeElement : null);
  const move = (by) => {
    const at = shown.indexOf(current());
    const to = at < 0 ? 0 : Math.min(Math.max(at + by, 0), shown.length - 1), next = shown[to];
    if (!next) return;
    if (to >= list.children.length) more(to + ROOM);
    const bring = () => next.scrollIntoView({ block: "nearest" });
    shown.slice(Math.max(to - 4, 0), to + 5).forEach(draw); // the row's height is that of its tallest card
    next.focus({ preventScroll: true });
    bring();
    setTimeout(bring, 100); // its row may have grown as its neighbours were laid out
  };
  const change = (name, how) => {
    const field = form.elements[name];
    if (!field) return;
    how(field);
    refresh();
  };
  const cycle = (field) => (field.selectedIndex = (field.selectedIndex + 1) % field.length);
  const help = document.getElementById("help");
  const doing = {
    j: () => move(1),
    k: () => move(-1),
    h: () => change("heat", (field) => (field.checked = !field.checked)),
    c: () => change("cells", (field) => (field.checked = !field.checked)),
    m: () => change("of", cycle),
    b: () => change("side", cycle),
    "[": () => change("opacity", (field) => field.stepDown(2)),
    "]": () => change("opacity", (field) => field.stepUp(2)),
    x: () => current() && mark(Number(current().dataset.i), { label_error: true }),
    "/": () => form.elements.q.focus(),
    "?": () => help.showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select, textarea, dialog[open]")) return;
    if (!document.getElementById("keys-on").checked) return;
    const cause = data.marking[Number(event.key) - 1];
    if (cause && current()) mark(Number(current().dataset.i), { cause });
    else if (Object.hasOwn(doing, event.key)) doing[event.key]();
    else return;
    event.preventDefault();
  });
  document.getElementById("keys").addEventListener("click", () => help.showModal());
  document.getElementById("close").addEventListener("click", () => help.close());
  document.getElementById("export").addEventListener("click", () => {
    const file = new Blob([`${JSON.stringify(exported(), null, 1)}\n`], { type: "application/json" });
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: "marks.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  form.elements.q.addEventListener("keydown", (event) => event.key === "Escape" && form.elements.q.blur());
  form.addEventListener("input", refresh);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(refresh)); // after the browser has emptied the fields
  addEventListener("hashchange", () => {
    if (!/^#[^&]+$/.test(location.hash)) fromAddress(); // a link to a section leaves the view as it is
    refresh();
  });

  // ---- a cell of the confusion matrix, or a pair of the table beside it, shows its images
  const pair = (actual, predicted) => {
    form.elements.true.value = actual;
    form.elements.predicted.value = predicted;
    refresh();
    document.getElementById("mistakes").scrollIntoView();
    form.elements.true.focus({ preventScroll: true });
  };
  for (const button of document.querySelectorAll(".pair")) {
    button.hidden = false;
    button.addEventListener("click", () => pair(button.dataset.true, button.dataset.predicted));
  }
  const matrix = document.querySelector("#confusion .plot"), area = matrix?.querySelector("#confusion-patch_2");
  const cell = (event) => {
    const box = area.getBoundingClientRect();
    const at = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width].map((share) => Math.floor(share * classes.length));
    return at.every((k) => 0 <= k && k < classes.length) ? at : null;
  };
  if (area) {
    matrix.classList.add("clickable");
    matrix.addEventListener("click", (event) => cell(event) && pair(...cell(event)));
    matrix.addEventListener("mousemove", (event) => {
      const at = cell(event);
      matrix.title = at ? `actual ${classes[at[0]]}, predicted ${classes[at[1]]}` : "";
    });
  }

  addEventListener("beforeprint", () => shown.slice(0, PRINTED).forEach(draw));

  form.hidden = false;
  fromAddress();
  read();
  refresh();
  for (const card of cards) watcher.observe(card);
  document.documentElement.dataset.ready = "1";
};
// What scrolls sideways can be reached and moved by the keyboard, in browsers too that don't see to it themselves.
const sideways = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
for (const box of document.querySelectorAll(".scroll")) sideways.observe(box);
if (document.getElementById("data")) start();
