"""A night: the one place that joins lake and registry to the pure rooms, and the Airflow that runs it."""
