/** Hostile images, clients, servers, messages and files. */
import { searched } from "../support/searched.ts";

Deno.test("fuzzing: 200,000 cases", () => searched("fuzz", "--count", "200000"));
