// Runs in the page: every text whose letters are too near to their ground, by WCAG 2.2's formula, as far as plain colours go.
export function tooFaint() {
  const parse = (color) => {
    const numbers = color.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0];
    const scale = color.startsWith("color(") ? 255 : 1;
    const [r, g, b] = numbers.slice(0, 3).map((value) => value * scale);
    return { r, g, b, a: numbers.length > 3 ? numbers[3] : 1 };
  };
  const over = (top, below) => {
    const mix = (a, b) => a * top.a + b * (1 - top.a);
    return { r: mix(top.r, below.r), g: mix(top.g, below.g), b: mix(top.b, below.b), a: 1 };
  };
  const luminance = ({ r, g, b }) => {
    const linear = (value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    };
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };
  const ground = (element) => {
    const layers = [];
    for (let at = element; at !== null; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.a > 0) layers.push(color);
      if (color.a === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), { r: 255, g: 255, b: 255, a: 1 });
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node !== null; node = walker.nextNode()) {
    const element = node.parentElement;
    if (node.textContent.trim() === "" || element.closest(".unseen, title, noscript, script, option") !== null) continue;
    const style = getComputedStyle(element);
    const below = ground(element);
    const letters = over(parse(element instanceof SVGElement ? style.fill : style.color), below);
    const [light, dark] = [luminance(letters), luminance(below)].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} <${element.tagName} class="${element.getAttribute("class")}"> ${node.textContent.trim().slice(0, 40)}`);
  }
  return found;
}
