"""Quality gates between the stages, and the page that on-call reads in the morning.

`validation` checks one day of a table against its contract, `night_metrics` compares a day with those before it
(`measures` counts, `history` makes bands, `alarms` are what lies outside), `gates` decides whether the night may go on,
`night` gathers what the night left behind, `report` writes the page and the summary, `data_docs` publishes Great
Expectations' own pages. Great Expectations takes seconds to import: only `suites` and `data_docs` do, and they are
imported when first needed.
"""
