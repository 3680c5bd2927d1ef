import sys, time
from opentelemetry._logs import SeverityNumber, LogRecord
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk.resources import Resource

endpoint, batches, records = sys.argv[1] + "/v1/logs", int(sys.argv[2]), int(sys.argv[3])
exporter = OTLPLogExporter(endpoint=endpoint, timeout=60, compression=Compression.Gzip)
provider = LoggerProvider(resource=Resource.create({"service.name": "otel-python"}))
processor = BatchLogRecordProcessor(exporter, schedule_delay_millis=600_000)
provider.add_log_record_processor(processor)
logger = provider.get_logger("test", "1.0")
for batch in range(batches):
    for record in range(records):
        now = time.time_ns()
        logger.emit(LogRecord(timestamp=now, observed_timestamp=now, severity_number=SeverityNumber.INFO, severity_text="INFO",
                              body=f"python {batch * records + record}", attributes={"n": record, "list": ["a", "b"]}))
    provider.force_flush(60_000)
provider.shutdown()
