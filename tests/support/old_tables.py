"""Tables as an older sgrec has made them."""

from deltalake import DeltaTable

from sgrec_core.lake import load_contract


def promotions_of_before(uri: str, *actions: str) -> DeltaTable:
    """``promotions`` when its contract allowed these actions."""
    contract = load_contract("promotions")
    delta = DeltaTable.create(uri, contract.arrow_schema, configuration=contract.delta_properties)
    values = ", ".join(f"'{action}'" for action in actions)
    delta.alter.add_constraint({"action_is_valid": f"action IN ({values})"})
    delta.alter.add_constraint({"sequence_is_valid": "sequence >= 1"})
    return DeltaTable(uri)
