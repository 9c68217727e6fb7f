// Sends a trace as a JavaScript program would, by the exporter that is named: json or proto.
import { SpanKind, SpanStatusCode, context, trace } from "@opentelemetry/api";
import { OTLPTraceExporter as JsonExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { OTLPTraceExporter as ProtoExporter } from "@opentelemetry/exporter-trace-otlp-proto";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BatchSpanProcessor, NodeTracerProvider } from "@opentelemetry/sdk-trace-node";

const [endpoint, kind, compression] = process.argv.slice(2);
const Exporter = kind === "json" ? JsonExporter : ProtoExporter;
const exporter = new Exporter({ url: `${endpoint}/v1/traces`, compression });
const provider = new NodeTracerProvider({
  resource: resourceFromAttributes({ "service.name": "from-javascript" }),
  spanProcessors: [new BatchSpanProcessor(exporter)],
});
const tracer = provider.getTracer("sender", "1.0");
const turn = tracer.startSpan("turn");
const call = tracer.startSpan(
  "chat some-model",
  {
    kind: SpanKind.CLIENT,
    attributes: {
      "gen_ai.operation.name": "chat",
      "gen_ai.provider.name": "openai",
      "gen_ai.request.model": "some-model",
      "gen_ai.usage.input_tokens": 7,
      "gen_ai.usage.output_tokens": 9,
      "gen_ai.response.finish_reasons": ["stop"],
    },
  },
  trace.setSpan(context.active(), turn),
);
call.addEvent("first", { at: 1 });
call.setStatus({ code: SpanStatusCode.ERROR, message: "as told" });
call.end();
turn.end();
await provider.shutdown();
process.stdout.write(turn.spanContext().traceId);
