"""Spark's JVM for jobs that come later: ``python -m sgrec_core.lake.gateway FILE``.

FILE tells `sgrec_core.lake.spark` where it listens. The JVM ends with this process, and at SIGTERM to both, which lets
it remove its temporary folders.
"""

import signal
import sys
from pathlib import Path

from pyspark.java_gateway import launch_gateway

from sgrec_core.files import write_json
from sgrec_core.lake.spark import check_java, spark_configuration
from sgrec_core.settings import Settings


def main() -> None:
    check_java()
    options = spark_configuration(Settings())
    gateway = launch_gateway(options)
    address = gateway.gateway_parameters
    content = {"port": address.port, "secret": address.auth_token, "options": dict(options.getAll())}
    write_json(Path(sys.argv[1]), content)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gateway.proc.wait()


if __name__ == "__main__":
    main()
