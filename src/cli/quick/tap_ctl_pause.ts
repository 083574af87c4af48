import { definePause } from "../tap_ctl/pause.ts";
import { quickCommand } from "./tap_ctl.ts";

export const run = quickCommand("pause", definePause);
