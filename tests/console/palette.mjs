// Screenshots for the documentation, with 256 colours: a third of the bytes, and the same to the eye.
import { crc32, deflateSync, inflateSync } from "node:zlib";

const SIGNATURE = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
const COLOURS = 256;

function* chunks(png) {
  for (let at = SIGNATURE.length; at < png.length; ) {
    const length = png.readUInt32BE(at);
    yield { type: png.toString("latin1", at + 4, at + 8), data: png.subarray(at + 8, at + 8 + length) };
    at += 12 + length;
  }
}

function chunk(type, data) {
  const body = Buffer.concat([Buffer.from(type, "latin1"), data]);
  const ends = Buffer.alloc(8);
  ends.writeUInt32BE(data.length, 0);
  ends.writeUInt32BE(crc(body), 4);
  return Buffer.concat([ends.subarray(0, 4), body, ends.subarray(4)]);
}

function crc(bytes) {
  if (crc32 !== undefined) return crc32(bytes);
  let value = 0xffffffff;
  for (const byte of bytes) {
    value ^= byte;
    for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  }
  return (value ^ 0xffffffff) >>> 0;
}

// PNG, section 9: each line has a filter of its own.
function unfiltered(lines, width, height, depth) {
  const stride = width * depth;
  const out = Buffer.alloc(stride * height);
  for (let y = 0; y < height; y += 1) {
    const filter = lines[y * (stride + 1)];
    for (let x = 0; x < stride; x += 1) {
      const left = x >= depth ? out[y * stride + x - depth] : 0;
      const up = y > 0 ? out[(y - 1) * stride + x] : 0;
      const corner = x >= depth && y > 0 ? out[(y - 1) * stride + x - depth] : 0;
      const guess = left + up - corner;
      const distances = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
      const paeth = distances[0] <= distances[1] && distances[0] <= distances[2] ? left : distances[1] <= distances[2] ? up : corner;
      const add = [0, left, up, (left + up) >> 1, paeth][filter];
      out[y * stride + x] = lines[y * (stride + 1) + 1 + x] + add;
    }
  }
  return out;
}

export function inPalette(png) {
  let header;
  const packed = [];
  for (const { type, data } of chunks(png)) {
    if (type === "IHDR") header = data;
    if (type === "IDAT") packed.push(data);
  }
  const [width, height] = [header.readUInt32BE(0), header.readUInt32BE(4)];
  const depth = { 2: 3, 6: 4 }[header[9]];
  const pixels = unfiltered(inflateSync(Buffer.concat(packed)), width, height, depth);

  const counts = new Map();
  const colour = (at) => (pixels[at] << 16) | (pixels[at + 1] << 8) | pixels[at + 2];
  for (let at = 0; at < pixels.length; at += depth) counts.set(colour(at), (counts.get(colour(at)) ?? 0) + 1);
  // Colours that are far apart first among the rare ones would be better; of letters and plain grounds the frequent ones are enough.
  const palette = [...counts].sort((a, b) => b[1] - a[1]).slice(0, COLOURS).map(([value]) => value);
  const places = new Map(palette.map((value, place) => [value, place]));
  const distance = (a, b) => ((a >> 16) - (b >> 16)) ** 2 + (((a >> 8) & 255) - ((b >> 8) & 255)) ** 2 + ((a & 255) - (b & 255)) ** 2;
  const nearest = (value) => {
    let best = 0;
    for (let place = 1; place < palette.length; place += 1) {
      if (distance(palette[place], value) < distance(palette[best], value)) best = place;
    }
    places.set(value, best);
    return best;
  };

  const lines = Buffer.alloc((width + 1) * height);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const value = colour((y * width + x) * depth);
      lines[y * (width + 1) + 1 + x] = places.get(value) ?? nearest(value);
    }
  }
  const head = Buffer.from(header);
  head[8] = 8;
  head[9] = 3;
  const table = Buffer.from(palette.flatMap((value) => [value >> 16, (value >> 8) & 255, value & 255]));
  return Buffer.concat([SIGNATURE, chunk("IHDR", head), chunk("PLTE", table), chunk("IDAT", deflateSync(lines, { level: 9 })), chunk("IEND", Buffer.alloc(0))]);
}
