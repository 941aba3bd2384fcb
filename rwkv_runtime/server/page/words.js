// Numbers as people read them; a unit is never parted from its number.

const GAP = "\u00a0";

export function count(number) {
  return Math.round(number).toLocaleString("en");
}

export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (number >= 1024 && place < units.length - 1) {
    number /= 1024;
    place += 1;
  }
  return `${place ? number.toFixed(1) : number}${GAP}${units[place]}`;
}

export function seconds(number) {
  if (number < 0.9995) return `${Math.round(number * 1000)}${GAP}ms`;
  if (number < 60) return `${number.toFixed(1)}${GAP}s`;
  if (number < 3600) return `${Math.floor(number / 60)}${GAP}min${GAP}${Math.round(number % 60)}${GAP}s`;
  return `${(number / 3600).toFixed(1)}${GAP}h`;
}
