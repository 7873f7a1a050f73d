(function () {
  "use strict";
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const data = JSON.parse(document.getElementById("timeline-data").textContent);

  function plots() {
    return typeof Bokeh === "undefined" ? [] : Bokeh.documents;
  }

  // Bokeh draws on canvases, which no style sheet reaches: hand it the colours of the page's scheme.
  function recolour() {
    const ink = style("--ink"), muted = style("--muted"), line = style("--line"), grid = style("--grid"), card = style("--card");
    for (const plot of plots()) {
      for (const model of plot.all_models) {
        if (/Axis$/.test(model.type)) {
          model.setv({ axis_label_text_color: muted, major_label_text_color: muted, axis_line_color: line });
        } else if (model.type === "Grid") {
          model.setv({ grid_line_color: grid });
        } else if (model.type === "GlyphRenderer" && (model.name === "ink" || model.name === "faint")) {
          const colour = model.name === "ink" ? ink : muted;
          for (const glyph of [model.glyph, model.nonselection_glyph, model.hover_glyph]) {
            if (!glyph || !glyph.setv) continue;
            if (glyph.properties.line_color) glyph.setv({ line_color: colour });
            if (glyph.properties.fill_color) glyph.setv({ fill_color: colour });
          }
        } else if (model.type === "GlyphRenderer" && model.name === "timeline boxes") {
          model.glyph.setv({ line_color: card });
        }
      }
    }
  }

  function find(name) {
    for (const plot of plots()) {
      for (const model of plot.all_models) if (model.name === name) return model;
    }
    return null;
  }

  // ---- pillars over steps: seconds or shares ------------------------------------------------------------------------
  function showPillars(share) {
    const figure = find("pillars");
    if (!figure) return;
    let top = 0;
    for (const name of ["compute", "comm", "io", "idle"]) {
      const glyph = find("pillar " + name), suffix = share ? "_share" : "";
      glyph.glyph.setv({ top: { field: name + suffix + "_high" }, bottom: { field: name + suffix + "_low" } });
      for (const value of glyph.data_source.data[name + "_high"]) top = Math.max(top, value);
    }
    figure.y_range.setv({ start: 0, end: share ? 1 : top * 1.03 || 1 });
    figure.left[0].setv({ axis_label: share ? "share of the step (mean over ranks)" : "seconds per step (mean over ranks)" });
    for (const button of document.querySelectorAll("[data-pillars]")) {
      button.setAttribute("aria-pressed", String((button.dataset.pillars === "share") === share));
    }
  }

  // ---- the timeline: one sampled step at a time ------------------------------------------------------------------------
  let shown = 0;
  function showStep(place) {
    const source = find("timeline spans"), figure = find("timeline");
    if (!data || !source || !figure) return;
    shown = Math.min(Math.max(place, 0), data.steps.length - 1);
    const step = data.steps[shown], rows = data.rows;
    const [kind, lane, row, start, end] = step.spans;
    const bottom = lane.map((at, i) => at - 0.4 + (0.8 * row[i]) / rows[at]);
    source.data = {
      left: start, right: end, bottom: bottom, top: bottom.map((low, i) => low + 0.8 / rows[lane[i]]),
      colour: kind.map((k) => data.colours[k]), name: kind.map((k) => data.names[k]),
      lane: lane.map((at) => data.lanes[at]), ms: end.map((last, i) => last - start[i]),
    };
    zoomTo(0, Math.max(...end) || 1);
    document.getElementById("timeline-step").value = String(shown);
    document.getElementById("timeline-start").textContent = "began " + step.start.toFixed(3) + " s into the run";
  }
  function zoomTo(start, end) { find("timeline").x_range.setv({ start: start, end: end }); }
  function zoom(by) {
    const range = find("timeline").x_range, middle = (range.start + range.end) / 2, half = ((range.end - range.start) / 2) * by;
    zoomTo(middle - half, middle + half);
  }

  function begin(tries) {
    const expected = document.querySelectorAll("[data-root-id]").length;
    if (expected && !(plots().length && plots()[0].roots().length >= expected)) {
      if (tries) setTimeout(() => begin(tries - 1), 25);
      return;
    }
    recolour();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
    for (const button of document.querySelectorAll("[data-pillars]")) {
      button.addEventListener("click", () => showPillars(button.dataset.pillars === "share"));
    }
    const select = document.getElementById("timeline-step");
    if (select) {
      select.addEventListener("change", () => showStep(Number(select.value)));
      const act = { previous: () => showStep(shown - 1), next: () => showStep(shown + 1), closer: () => zoom(0.5), wider: () => zoom(2), whole: () => showStep(shown) };
      for (const button of document.querySelectorAll("[data-timeline]")) {
        button.addEventListener("click", act[button.dataset.timeline]);
      }
      showStep(Math.min(data.steps.length - 1, Math.floor(data.steps.length / 2)));
    }
    document.documentElement.dataset.ready = "yes";
  }
  begin(400);
})();
