import { defineStats } from "../tap_ctl/stats.ts";
import { quickCommand } from "./tap_ctl.ts";

export const run = quickCommand("stats", defineStats);
