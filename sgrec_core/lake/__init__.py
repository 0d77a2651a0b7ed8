"""The lake: Delta tables under one root, each published as its contract in ``schemas/`` says."""

from sgrec_core.lake.contracts import Column, Contract, all_contracts, load_contract, table_names
from sgrec_core.lake.tables import Lake

__all__ = ["Column", "Contract", "Lake", "all_contracts", "load_contract", "table_names"]
