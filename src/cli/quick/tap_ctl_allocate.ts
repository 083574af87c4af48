import { defineAllocate } from "../tap_ctl/allocate.ts";
import { quickCommand } from "./tap_ctl.ts";

export const run = quickCommand("allocate", defineAllocate);
