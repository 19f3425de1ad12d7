"use strict";
(() => {
  const data = JSON.parse(document.getElementById("measurements").textContent);
  const slides = data.slides;
  const names = ["brightness", "contrast", "tissue"];
  const find = (id) => document.getElementById(id);
  const which = find("which"), own = find("own"), verdict = find("verdict");
  const sliders = Object.fromEntries(names.map((name) => [name, find(name)]));
  // Spaces between thousands, as in the tables above.
  const count = (value) => Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");

  slides.forEach((slide, i) => which.add(new Option(slide.name, i)));
  const rows = slides.map((slide) => {
    const row = find("would-keep").tBodies[0].insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = slide.name;
    row.append(head);
    for (let i = 0; i < 4; i++) row.insertCell().className = i < 3 ? "n" : "";
    const meter = document.createElement("span"), bar = document.createElement("span");
    meter.className = "meter";
    meter.append(bar);
    row.cells[4].append(meter);
    row.cells[1].textContent = count(slide.patches);
    row.cells[2].textContent = slide.kept === null ? "\u2013" : count(slide.kept);
    return { row, bar };
  });

  // Nothing below the selection's own threshold is stored: the slider starts where the patches do.
  const least = slides.reduce((low, slide) => slide.tissue.reduce((a, b) => Math.min(a, b), low), 1 / data.steps.tissue);
  sliders.tissue.min = Math.min(0.95, Math.max(0, Math.floor(least * data.steps.tissue * 100 + 1e-6) / 100));

  const thresholds = (slide) => {
    const hasOwn = own.checked && slide.brightnessThreshold !== null;
    return {
      // Whole multiples of the step on both sides: no rounding decides.
      brightness: Math.round((hasOwn ? slide.brightnessThreshold : +sliders.brightness.value) / data.steps.brightness),
      contrast: Math.round(+sliders.contrast.value / data.steps.contrast),
      tissue: Math.round(+sliders.tissue.value / data.steps.tissue),
    };
  };
  const keeps = (slide, i, limit) =>
    slide.brightness[i] <= limit.brightness && slide.contrast[i] >= limit.contrast && slide.tissue[i] >= limit.tissue;

  const draw = (name, chosen) => {
    const svg = find(name + "-histogram"), low = +sliders[name].min, high = +sliders[name].max;
    // A bin holds a whole number of steps: otherwise some bins would catch more values than their neighbours.
    const step = data.steps[name], first = Math.round(low / step), steps = Math.round((high - low) / step);
    const wide = Math.ceil(steps / 64), bins = Math.ceil(steps / wide);
    const kept = new Float64Array(bins), dropped = new Float64Array(bins);
    for (const slide of chosen) {
      const limit = thresholds(slide), weight = slide.patches / slide.brightness.length;
      slide[name].forEach((value, i) => {
        const bin = Math.min(bins - 1, Math.max(0, Math.floor((value - first) / wide)));
        (keeps(slide, i, limit) ? kept : dropped)[bin] += weight;
      });
    }
    const most = Math.max(1, ...kept.map((value, i) => value + dropped[i]));
    const width = 320 * wide / steps, base = 130, tall = 118, marks = [];
    const bar = (kind, i, bottom, height) => {
      if (height > 0) marks.push(`<rect class="${kind}" x="${i * width}" y="${bottom - height}" width="${width * 0.86}" height="${height}"/>`);
    };
    for (let i = 0; i < bins; i++) {
      const top = base - kept[i] / most * tall;
      bar("kept", i, base, base - top);
      bar("dropped", i, top, dropped[i] / most * tall);
    }
    marks.push(`<line class="axis" x1="0" x2="320" y1="${base}" y2="${base}"/>`);
    [low, (low + high) / 2, high].forEach((value, i) => {
      const more = i === 2 && name === "contrast" ? " and more" : "";
      marks.push(`<text x="${i * 160}" y="${base + 15}" text-anchor="${["start", "middle", "end"][i]}">${+value.toFixed(2)}${more}</text>`);
    });
    for (const limit of new Set(chosen.map((slide) => thresholds(slide)[name] * step))) {
      const x = Math.min(319, Math.max(1, (limit - low) / (high - low) * 320));
      marks.push(`<line class="threshold" x1="${x}" x2="${x}" y1="4" y2="${base}"/>`);
    }
    // Numbers only: nothing in this markup comes from the measured slides' names.
    svg.innerHTML = marks.join("");
    const sum = (values) => values.reduce((a, b) => a + b, 0);
    svg.setAttribute("aria-label", `Histogram of ${name}: ${count(sum(kept))} kept, ${count(sum(dropped))} dropped`);
  };

  const update = () => {
    const chosen = which.value === "" ? slides : [slides[+which.value]];
    let patches = 0, wouldKeep = 0, sampled = false;
    slides.forEach((slide, s) => {
      const limit = thresholds(slide), n = slide.brightness.length;
      let kept = 0;
      for (let i = 0; i < n; i++) kept += keeps(slide, i, limit);
      const estimate = kept / n * slide.patches, shown = n === slide.patches ? "" : "≈ ";
      rows[s].row.cells[3].textContent = shown + count(estimate);
      rows[s].bar.style.width = 100 * kept / n + "%";
      rows[s].row.hidden = !chosen.includes(slide);
      if (chosen.includes(slide)) {
        patches += slide.patches;
        wouldKeep += estimate;
        sampled ||= n !== slide.patches;
      }
    });
    const share = (100 * wouldKeep / patches).toFixed(1);
    verdict.textContent = `${sampled ? "About " : ""}${count(wouldKeep)} of ${count(patches)} would be kept (${share} %)`
      + (sampled ? ", estimated from a sample of each slide" : "");
    const limits = [...new Set(chosen.map((slide) => thresholds(slide).brightness * data.steps.brightness))].sort((a, b) => a - b);
    find("brightness-value").textContent = limits.map((value) => +value.toFixed(2)).join(", ");
    find("contrast-value").textContent = (+sliders.contrast.value).toFixed(3);
    find("tissue-value").textContent = Math.round(100 * sliders.tissue.value) + " %";
    names.forEach((name) => draw(name, chosen));
  };

  const reset = () => {
    const known = slides.filter((slide) => slide.brightnessThreshold !== null);
    sliders.brightness.value = known.length ? known[0].brightnessThreshold : 205;
    sliders.contrast.value = slides[0].contrastThreshold;
    sliders.tissue.value = sliders.tissue.min;
    own.checked = known.length > 0;
    own.disabled = known.length === 0;
    update();
  };
  sliders.brightness.addEventListener("input", () => { own.checked = false; update(); });
  for (const element of [which, own, sliders.contrast, sliders.tissue]) element.addEventListener("input", update);
  find("reset").addEventListener("click", reset);
  reset();
})();
