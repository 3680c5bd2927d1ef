const { logs, SeverityNumber } = require('@opentelemetry/api-logs');
const { LoggerProvider, BatchLogRecordProcessor } = require('@opentelemetry/sdk-logs');
const { resourceFromAttributes } = require('@opentelemetry/resources');
const [url, name, batches, records] = process.argv.slice(2);
const { OTLPLogExporter } = require(`@opentelemetry/exporter-logs-otlp-${name === 'json' ? 'http' : 'proto'}`);

async function main() {
  const exporter = new OTLPLogExporter({ url: `${url}/v1/logs`, timeoutMillis: 60000, compression: 'gzip' });
  const processor = new BatchLogRecordProcessor({ exporter, scheduledDelayMillis: 600000, exportTimeoutMillis: 60000 });
  const provider = new LoggerProvider({ resource: resourceFromAttributes({ 'service.name': `otel-node-${name}` }), processors: [processor] });
  const logger = provider.getLogger('test', '1.0');
  for (let batch = 0; batch < batches; batch++) {
    for (let record = 0; record < records; record++) {
      logger.emit({ severityNumber: SeverityNumber.INFO, severityText: 'INFO',
        body: `${name} ${batch * records + record}`, attributes: { n: record, list: ['a', 'b'] } });
    }
    await provider.forceFlush();
  }
  await provider.shutdown();
}
main();
