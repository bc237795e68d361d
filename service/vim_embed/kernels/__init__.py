"""The operations of Vim: `ops` is the contract, `reference` the specification, the fast ones stand
beside it, and `select` chooses. Knows no model and no file."""
