"use strict";

// The viewer: CT, location map and contours of one axial slice on a canvas. All data are in the
// page; nothing is fetched. Without it (no script, or a slice that cannot be decoded) the page
// shows the static pictures.
(() => {
  const data = JSON.parse(document.getElementById("slices").textContent);
  const { columns, rows, levels, tiles, bands } = data;
  const pixels = columns * rows;
  const element = (id) => document.getElementById(id);
  const canvas = element("canvas");
  const slider = element("slice");
  const decoded = new Map();
  const [lowHu, highHu] = data.windowHu;
  const initial = {
    slice: data.first,
    width: highHu - lowHu,
    level: (lowHu + highHu) / 2,
    opacity: 100,
    threshold: 0,
  };
  const units = { width: " HU", level: " HU", opacity: " %", threshold: " %" };

  // A canvas that is not shown, and its context.
  function sheetOf(width, height) {
    const element = Object.assign(document.createElement("canvas"), { width, height });
    return { element, context: element.getContext("2d", { willReadFrequently: true }) };
  }

  // The planes of a slice, as described in viewer.py, and the contours of liver and spleen.
  async function decode(index) {
    if (decoded.has(index)) return decoded.get(index);
    const image = new Image();
    image.src = "data:image/png;base64," + tiles[index];
    await image.decode();
    const sheet = sheetOf(columns, 3 * rows);
    sheet.context.drawImage(image, 0, 0);
    const rgba = sheet.context.getImageData(0, 0, columns, 3 * rows).data;
    const planes = new Uint8Array(3 * pixels);
    for (let i = 0; i < planes.length; i++) planes[i] = rgba[4 * i];
    const organs = planes.subarray(2 * pixels);
    const slice = {
      ct: planes.subarray(0, pixels),
      map: planes.subarray(pixels, 2 * pixels),
      liver: contour(organs, 1),
      spleen: contour(organs, 2),
    };
    decoded.set(index, slice);
    return slice;
  }

  // Marching squares: lines between the midpoints of the edges that a contour crosses.
  function contour(organs, label) {
    const path = new Path2D();
    const inside = (x, y) =>
      x >= 0 && y >= 0 && x < columns && y < rows && organs[y * columns + x] === label ? 1 : 0;
    for (let y = -1; y < rows; y++) {
      for (let x = -1; x < columns; x++) {
        const corners =
          inside(x, y) | (inside(x + 1, y) << 1) | (inside(x + 1, y + 1) << 2) | (inside(x, y + 1) << 3);
        for (const [from, to] of LINES[corners]) {
          path.moveTo(x + 0.5 + from[0], y + 0.5 + from[1]);
          path.lineTo(x + 0.5 + to[0], y + 0.5 + to[1]);
        }
      }
    }
    return path;
  }

  const T = [0.5, 0], R = [1, 0.5], B = [0.5, 1], L = [0, 0.5];
  const LINES = [
    [], [[L, T]], [[T, R]], [[L, R]], [[R, B]], [[L, T], [R, B]], [[T, B]], [[L, B]],
    [[B, L]], [[T, B]], [[T, R], [B, L]], [[R, B]], [[L, R]], [[T, R]], [[L, T]], [],
  ];

  const state = { ...initial, contours: true };
  const sheet = sheetOf(columns, rows);
  const picture = sheet.context.createImageData(columns, rows);

  function colors() {
    const table = new Float32Array(256 * 4);
    for (let value = 1; value < 256; value++) {
      if (value / 255 < state.threshold / 100) continue;
      const [red, green, blue, opacity] = bands[Math.ceil((value * (bands.length - 1)) / 255)];
      table.set([red, green, blue, (opacity * state.opacity) / 100], 4 * value);
    }
    return table;
  }

  function greys() {
    const low = state.level - state.width / 2;
    return Float32Array.from({ length: 256 }, (_, value) => {
      const hu = data.firstHu + data.stepHu * value;
      return 255 * Math.min(1, Math.max(0, (hu - low) / state.width));
    });
  }

  async function draw() {
    const index = state.slice;
    const slice = await decode(index);
    if (index !== state.slice) return; // another slice was asked for meanwhile
    const color = colors(), grey = greys(), out = picture.data;
    for (let i = 0; i < pixels; i++) {
      const g = grey[slice.ct[i]], c = 4 * slice.map[i], opacity = color[c + 3];
      for (let k = 0; k < 3; k++) out[4 * i + k] = g * (1 - opacity) + color[c + k] * opacity;
      out[4 * i + 3] = 255;
    }
    sheet.context.putImageData(picture, 0, 0);
    const scale = (canvas.clientWidth * (window.devicePixelRatio || 1)) / columns || 1;
    canvas.width = Math.round(columns * scale);
    canvas.height = Math.round(rows * scale);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.drawImage(sheet.element, 0, 0);
    if (!state.contours) return;
    context.lineWidth = (1.5 * canvas.width) / canvas.clientWidth / scale;
    for (const [path, rgb] of [[slice.spleen, data.spleenColor], [slice.liver, data.liverColor]]) {
      context.strokeStyle = `rgb(${rgb.join(" ")})`;
      context.stroke(path);
    }
  }

  function show() {
    const position = `Slice ${state.slice + 1} of ${levels.length}, S ${levels[state.slice].toFixed(1)} mm`;
    element("position").textContent = position;
    slider.setAttribute("aria-valuetext", position);
    element("slice-value").textContent = `${state.slice + 1} / ${levels.length}`;
    for (const name of Object.keys(initial)) element(name).value = state[name];
    for (const [name, unit] of Object.entries(units)) {
      element(`${name}-value`).textContent = state[name] + unit;
      element(name).setAttribute("aria-valuetext", state[name] + unit);
    }
    element("contours").checked = state.contours;
    draw().catch(showPictures);
  }

  function go(index) {
    state.slice = Math.min(levels.length - 1, Math.max(0, index));
    show();
  }

  for (const name of Object.keys(initial)) {
    element(name).addEventListener("input", (event) => {
      state[name] = Number(event.target.value);
      show();
    });
  }
  element("contours").addEventListener("change", (event) => {
    state.contours = event.target.checked;
    show();
  });
  element("reset").addEventListener("click", () => {
    Object.assign(state, initial, { contours: true });
    show();
  });
  element("print").addEventListener("click", () => window.print());

  canvas.addEventListener("keydown", (event) => {
    const targets = {
      ArrowUp: state.slice - 1,
      ArrowLeft: state.slice - 1,
      ArrowDown: state.slice + 1,
      ArrowRight: state.slice + 1,
      PageUp: state.slice - 10,
      PageDown: state.slice + 10,
      Home: 0,
      End: levels.length - 1,
    };
    if (!(event.key in targets) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    go(targets[event.key]);
  });

  // A notch of a wheel is one slice; the small steps of a touchpad are added up.
  let scrolled = 0;
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (event.ctrlKey) return; // zoom
      event.preventDefault();
      scrolled += event.deltaMode === 0 ? event.deltaY / 60 : event.deltaY;
      if (Math.abs(scrolled) < 1) return;
      go(state.slice + Math.sign(scrolled));
      scrolled = 0;
    },
    { passive: false },
  );

  const viewer = element("viewer");
  function showPictures() {
    viewer.hidden = true;
  }

  slider.max = levels.length - 1;
  canvas.style.aspectRatio = `${columns} / ${rows}`;
  decode(state.slice).then(() => {
    viewer.hidden = false;
    new ResizeObserver(show).observe(canvas);
  }, showPictures);
})();
