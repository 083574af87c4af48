import { defineSpawn } from "../tap_ctl/spawn.ts";
import { quickCommand } from "./tap_ctl.ts";

export const run = quickCommand("spawn", defineSpawn);
