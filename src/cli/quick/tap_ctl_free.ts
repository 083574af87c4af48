import { defineFree } from "../tap_ctl/free.ts";
import { quickCommand } from "./tap_ctl.ts";

export const run = quickCommand("free", defineFree);
