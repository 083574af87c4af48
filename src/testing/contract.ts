import { SharedStateError } from "../../ffi/assert.ts";

/**
 * A violation of the contract of `src/driver/driver.ts`, by a driver or by its user. It ends the
 * process: no disk contains it, so a test cannot miss it.
 */
export class ContractViolation extends SharedStateError {
  override readonly name = "ContractViolation";
}
