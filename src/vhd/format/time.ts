/** The Unix time of 2000-01-01T00:00:00Z, from which VHD time stamps count seconds. */
export const VHD_EPOCH_START = 946_684_800;

const WEEKDAYS = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
const MONTHS = [
  "Jan",
  "Feb",
  "Mar",
  "Apr",
  "May",
  "Jun",
  "Jul",
  "Aug",
  "Sep",
  "Oct",
  "Nov",
  "Dec",
];

/** The VHD time stamp of a Unix time in seconds, as an unsigned 32-bit number. */
export function vhdTime(unixSeconds: number): number {
  return Math.floor(unixSeconds - VHD_EPOCH_START) >>> 0;
}

/** The current time as a VHD time stamp. */
export function vhdTimeNow(): number {
  return vhdTime(Date.now() / 1000);
}

/** A time stamp in the form of ctime(3), in local time: `Sat Nov 22 15:26:00 2025`. */
export function formatVhdTime(timestamp: number): string {
  const date = new Date((timestamp + VHD_EPOCH_START) * 1000);
  const two = (n: number): string => String(n).padStart(2, "0");
  const clock = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  const day = String(date.getDate()).padStart(2, " ");
  return `${WEEKDAYS[date.getDay()]} ${
    MONTHS[date.getMonth()]
  } ${day} ${clock} ${date.getFullYear()}`;
}
