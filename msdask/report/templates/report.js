"use strict";
(() => {
  const data = JSON.parse(document.getElementById("measurements").textContent);
  const measures = data.measures;
  // Spaces between thousands, as in the tables above.
  const count = (value) => Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const left = 36, right = 316, base = 142, tall = 128;

  // What a value of a measure is written as.
  const written = (measure, value) =>
    measure.percent ? +(100 * value).toFixed(1) + "\u202f%" : (+value.toFixed(3)).toString();

  // The largest number of the y axis, whose half is a whole number, too.
  const round = (value) => {
    const power = 10 ** Math.floor(Math.log10(Math.max(1, value)));
    return [1, 2, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= value);
  };

  // One bar may hold nearly all patches (those that are all tissue): the axis ends above the others, and says so.
  const axisOf = (bars) => {
    const sorted = [...bars].sort((a, b) => b - a), most = sorted[0], next = sorted[1] || 0;
    return most > 4 * next && sorted[2] > 0 ? { top: round(1.5 * next), cut: most } : { top: round(Math.max(1, most)), cut: 0 };
  };

  const panelOf = (setNumber) => {
    const find = (id) => document.getElementById(`${id}-${setNumber}`);
    const slides = data.slides.filter((slide) => slide.set === setNumber);
    const which = find("which"), own = find("own"), verdict = find("verdict");
    const sliders = Object.fromEntries(measures.map((measure) => [measure.name, find(measure.name)]));

    slides.forEach((slide, i) => which.add(new Option(slide.name, i)));
    const rows = slides.map((slide) => {
      const row = find("would-keep").tBodies[0].insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = slide.name;
      row.append(head);
      for (const label of ["patches", "kept by the run", "would keep"]) {
        const cell = row.insertCell();
        cell.className = "n";
        cell.dataset.label = label;
      }
      row.insertCell().className = "share";
      const meter = document.createElement("span"), bar = document.createElement("span");
      meter.className = "meter";
      meter.append(bar);
      row.cells[4].append(meter);
      row.cells[1].textContent = count(slide.patches);
      row.cells[2].textContent = slide.kept === null ? "\u2013" : count(slide.kept);
      return { row, bar };
    });

    // Whole multiples of the step on both sides: no rounding decides.
    const limitOf = (slide, measure) => {
      const isOwn = measure.name === "brightness" && own.checked && slide.thresholds.brightness !== null;
      return Math.round((isOwn ? slide.thresholds.brightness : +sliders[measure.name].value) / measure.step);
    };
    const limitsOf = (slide) => measures.map((measure) => limitOf(slide, measure));
    const keeps = (slide, i, limits) =>
      measures.every((measure, m) => {
        const values = slide.values[measure.name];  // a slide of an earlier version lacks some
        if (!values) return true;
        // At the end of a slider everything is kept, also what lies beyond it.
        if (+sliders[measure.name].value === (measure.at_most ? measure.high : measure.low) && limits[m] === Math.round(sliders[measure.name].value / measure.step)) return true;
        return measure.at_most ? values[i] <= limits[m] : values[i] >= limits[m];
      });

    const draw = (measure, chosen, kept) => {
      const svg = find(measure.name + "-histogram"), low = +sliders[measure.name].min, high = measure.high;
      // A bin holds a whole number of steps: otherwise some bins would catch more values than their neighbours.
      const first = Math.round(low / measure.step), steps = Math.round((high - low) / measure.step);
      const wide = Math.ceil(steps / 50), bins = Math.ceil(steps / wide);
      const good = new Float64Array(bins), bad = new Float64Array(bins);
      for (const slide of chosen) {
        const values = slide.values[measure.name] || [], weight = slide.patches / slide.values.brightness.length;
        values.forEach((value, i) => {
          const bin = Math.min(bins - 1, Math.max(0, Math.floor((value - first) / wide)));
          (kept.get(slide)[i] ? good : bad)[bin] += weight;
        });
      }
      const axis = axisOf(Array.from(good, (value, i) => value + bad[i]));
      const across = (right - left) / bins, marks = [];
      const high01 = (value) => Math.min(1, value / axis.top) * tall;
      for (const part of [0, 0.5, 1]) {
        const y = base - part * tall;
        marks.push(`<line class="${part ? "grid" : "axis"}" x1="${left}" x2="${right}" y1="${y}" y2="${y}"/>`);
        if (part !== 0.5 || axis.top > 1) marks.push(`<text x="${left - 5}" y="${y + 4}" text-anchor="end">${count(part * axis.top)}</text>`);
      }
      const bar = (kind, i, from, to) => {
        if (to > from) marks.push(`<rect class="${kind}" x="${left + i * across}" y="${base - to}" width="${across * 0.86}" height="${to - from}"/>`);
      };
      for (let i = 0; i < bins; i++) {
        bar("kept", i, 0, high01(good[i]));
        bar("dropped", i, high01(good[i]), high01(good[i] + bad[i]));
        if (good[i] + bad[i] > axis.top) {
          const x = left + i * across, y = base - tall + 10;
          marks.push(`<line class="cut" x1="${x - 2}" x2="${x + across + 1}" y1="${y + 4}" y2="${y - 4}"/>`);
        }
      }
      find(measure.name + "-cut").textContent = axis.cut ? `(one bar is cut: ${count(axis.cut)})` : "";
      [low, high > 10 ? Math.round((low + high) / 2) : (low + high) / 2, high].forEach((value, i) => {
        const more = i === 2 && (measure.name === "contrast" || measure.name === "focus") ? " and more" : "";
        const anchor = ["start", "middle", "end"][i];
        marks.push(`<text x="${left + i * (right - left) / 2}" y="${base + 18}" text-anchor="${anchor}">${written(measure, value)}${more}</text>`);
      });
      for (const limit of new Set(chosen.map((slide) => limitOf(slide, measure) * measure.step))) {
        const x = left + Math.min(1, Math.max(0, (limit - low) / (high - low))) * (right - left);
        marks.push(`<line class="threshold" x1="${x}" x2="${x}" y1="4" y2="${base}"/>`);
      }
      // Numbers only: nothing in this markup comes from the measured slides' names.
      svg.innerHTML = marks.join("");
      svg.setAttribute("aria-label", `Histogram of ${measure.name}: ${count(sum(good))} kept, ${count(sum(bad))} dropped`);
    };

    // "195 on 2 slides, 200 on 1": a threshold that is not the same on all slides is shown so.
    const limitText = (measure, chosen) => {
      const found = new Map();
      for (const slide of chosen) {
        const limit = limitOf(slide, measure) * measure.step;
        found.set(limit, (found.get(limit) || 0) + 1);
      }
      const limits = [...found].sort((a, b) => a[0] - b[0]);
      if (limits.length === 1) return written(measure, limits[0][0]);
      return limits.map(([limit, n], i) => `${written(measure, limit)} on ${n}${i ? "" : n > 1 ? " slides" : " slide"}`).join(", ");
    };

    const update = () => {
      const chosen = which.value === "" ? slides : [slides[+which.value]], kept = new Map();
      let patches = 0, wouldKeep = 0, sampled = false;
      slides.forEach((slide, s) => {
        const limits = limitsOf(slide), n = slide.values.brightness.length;
        const verdicts = slide.values.brightness.map((_, i) => keeps(slide, i, limits));
        kept.set(slide, verdicts);
        const share = verdicts.filter(Boolean).length / n, shown = n === slide.patches ? "" : "≈ ";
        rows[s].row.cells[3].textContent = shown + count(share * slide.patches);
        rows[s].bar.style.width = 100 * share + "%";
        rows[s].row.hidden = !chosen.includes(slide);
        if (chosen.includes(slide)) {
          patches += slide.patches;
          wouldKeep += share * slide.patches;
          sampled ||= n !== slide.patches;
        }
      });
      const share = (100 * wouldKeep / patches).toFixed(1);
      verdict.textContent = `${sampled ? "About " : ""}${count(wouldKeep)} of ${count(patches)} would be kept (${share} %)`
        + (sampled ? ", estimated from a sample of each slide" : "");
      for (const measure of measures) {
        const text = limitText(measure, chosen);
        find(measure.name + "-value").textContent = text;
        sliders[measure.name].classList.toggle("apart", text.includes(" on "));
        draw(measure, chosen, kept);
      }
    };

    const reset = () => {
      const known = slides.filter((slide) => slide.thresholds.brightness !== null);
      for (const measure of measures) {
        const slider = sliders[measure.name], decided = slides[0].thresholds[measure.name];
        // Nothing below the selection's own threshold of tissue is stored: the slider begins there.
        if (measure.name === "tissue") slider.min = Math.min(0.95, ...slides.map((slide) => slide.thresholds.tissue));
        slider.value = decided ?? (measure.at_most ? measure.high : measure.low);
      }
      if (known.length) sliders.brightness.value = known[0].thresholds.brightness;
      own.checked = known.length > 0;
      own.disabled = known.length === 0;
      update();
    };
    sliders.brightness.addEventListener("input", () => { own.checked = false; update(); });
    for (const element of [which, own, ...measures.slice(1).map((measure) => sliders[measure.name])]) element.addEventListener("input", update);
    find("reset").addEventListener("click", reset);
    reset();
  };
  data.sets.forEach((_, setNumber) => panelOf(setNumber));
})();
