import central.licensing.v1.Licensing;
import central.licensing.v1.LicensingServiceGrpc;
import com.google.gson.Gson;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.Any;
import com.google.protobuf.Descriptors.Descriptor;
import com.google.protobuf.DynamicMessage;
import com.google.protobuf.Empty;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.protobuf.TypeRegistry;
import com.google.protobuf.util.JsonFormat;
import com.google.rpc.ErrorDetailsProto;
import com.google.rpc.RetryInfo;
import com.google.rpc.Status;
import io.grpc.CallCredentials;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ChannelCredentials;
import io.grpc.ClientInterceptor;
import io.grpc.CompositeChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthCheckResponse;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.ClientResponseObserver;
import io.grpc.stub.MetadataUtils;
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executor;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;

/**
 * grpc-java on netty with its default limits, as a Java team would use it: generated stubs, StatusProto.
 *
 * <p>Talks to line_client.py in lines of JSON: {id, op, …} in, {id, …} out.
 */
final class Client {
  private static final Gson GSON = new Gson();
  private static final TypeRegistry TYPES =
      TypeRegistry.newBuilder()
          .add(ErrorDetailsProto.getDescriptor().getMessageTypes())
          .add(Licensing.getDescriptor().getMessageTypes())
          .build();
  private static final JsonFormat.Printer PRINTER =
      JsonFormat.printer()
          .preservingProtoFieldNames()
          .alwaysPrintFieldsWithNoPresence()
          .omittingInsignificantWhitespace();

  private final ManagedChannel channel;
  private final Map<Integer, ClientCallStreamObserver<?>> streams = new ConcurrentHashMap<>();

  private Client(ManagedChannel channel) {
    this.channel = channel;
  }

  public static void main(String[] arguments) throws IOException {
    var client = new Client(channel(JsonParser.parseString(arguments[0]).getAsJsonObject()));
    client.warmUp();
    say(Map.of("id", 0));
    ExecutorService pool = Executors.newCachedThreadPool();
    var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      JsonObject ask = JsonParser.parseString(line).getAsJsonObject();
      pool.execute(() -> client.answer(ask));
    }
    Runtime.getRuntime().halt(0);
  }

  /** A first call, whatever comes of it: a JVM needs seconds for it on a busy machine, which no case should measure. */
  private void warmUp() {
    try {
      HealthGrpc.newBlockingStub(channel)
          .withDeadlineAfter(20, TimeUnit.SECONDS)
          .check(HealthCheckRequest.getDefaultInstance());
    } catch (StatusRuntimeException expected) {
      // Not every server that a case puts here has this method, and not every certificate is good.
    }
  }

  private static ManagedChannel channel(JsonObject settings) throws IOException {
    var builder =
        Grpc.newChannelBuilder(text(settings, "address"), credentials(settings.get("shown")))
            .proxyDetector(address -> null);
    JsonElement retries = settings.get("retries");
    if (!retries.isJsonNull()) {
      @SuppressWarnings("unchecked") // JSON objects are maps, numbers are doubles: what it takes
      Map<String, ?> config = GSON.fromJson(retries, Map.class);
      builder.defaultServiceConfig(config);
    }
    return builder.build();
  }

  private static ChannelCredentials credentials(JsonElement given) throws IOException {
    if (given.isJsonNull()) return InsecureChannelCredentials.create();
    JsonObject shown = given.getAsJsonObject();
    var tls = TlsChannelCredentials.newBuilder().trustManager(pem(text(shown, "ca")));
    String certificate = text(shown, "certificate");
    if (certificate != null) tls.keyManager(pem(certificate), pem(text(shown, "key")));
    String token = text(shown, "token");
    if (token == null) return tls.build();
    return CompositeChannelCredentials.create(tls.build(), new Bearer(token));
  }

  private static final class Bearer extends CallCredentials {
    private final Metadata headers = new Metadata();

    Bearer(String token) {
      headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
    }

    @Override
    public void applyRequestMetadata(RequestInfo request, Executor executor, MetadataApplier applier) {
      applier.apply(headers);
    }
  }

  private void answer(JsonObject ask) {
    try {
      switch (text(ask, "op")) {
        case "health_watch" -> watch(ask);
        case "cancel" -> streams.get(ask.get("stream").getAsInt()).cancel("cancelled", null);
        default -> unary(ask);
      }
    } catch (Exception | Error broken) { // a bug of this client: it must not go unseen
      broken.printStackTrace();
      Runtime.getRuntime().halt(1);
    }
  }

  private void unary(JsonObject ask) throws InvalidProtocolBufferException {
    var headers = new AtomicReference<Metadata>();
    var trailers = new AtomicReference<Metadata>();
    ClientInterceptor capture = MetadataUtils.newCaptureMetadataInterceptor(headers, trailers);
    Map<String, Object> said = said(ask);
    try {
      said.put("response", spelled(call(ask, capture)));
      said.put("code", "OK");
    } catch (StatusRuntimeException failed) {
      said.put("code", failed.getStatus().getCode().name());
      String message = failed.getStatus().getDescription();
      said.put("message", message == null ? "" : message);
      said.put("details", details(failed));
    }
    said.put("trailers", texts(trailers.get()));
    say(said);
  }

  private Message call(JsonObject ask, ClientInterceptor capture) throws InvalidProtocolBufferException {
    var licensing = LicensingServiceGrpc.newBlockingStub(channel).withInterceptors(capture);
    JsonElement timeout = ask.get("timeout_ms");
    if (timeout != null && !timeout.isJsonNull()) {
      licensing = licensing.withDeadlineAfter(timeout.getAsLong(), TimeUnit.MILLISECONDS);
    }
    return switch (text(ask, "op")) {
      case "unassign" -> {
        var request = Licensing.UnassignLicensesRequest.newBuilder();
        JsonFormat.parser().merge(ask.get("request").toString(), request);
        yield licensing.unassignLicenses(request.build());
      }
      case "list_services" -> licensing.listServices(Licensing.ListServicesRequest.getDefaultInstance());
      case "health_check" ->
          HealthGrpc.newBlockingStub(channel).withInterceptors(capture).check(healthRequest(ask));
      case "call_unknown" ->
          ClientCalls.blockingUnaryCall(
              io.grpc.ClientInterceptors.intercept((Channel) channel, capture),
              MethodDescriptor.<Empty, Empty>newBuilder()
                  .setType(MethodDescriptor.MethodType.UNARY)
                  .setFullMethodName(text(ask, "path").substring(1))
                  .setRequestMarshaller(ProtoUtils.marshaller(Empty.getDefaultInstance()))
                  .setResponseMarshaller(ProtoUtils.marshaller(Empty.getDefaultInstance()))
                  .build(),
              CallOptions.DEFAULT,
              Empty.getDefaultInstance());
      default -> throw new IllegalArgumentException("an op that this client does not know: " + ask);
    };
  }

  private void watch(JsonObject ask) throws InvalidProtocolBufferException {
    int id = ask.get("id").getAsInt();
    HealthGrpc.newStub(channel)
        .watch(
            healthRequest(ask),
            new ClientResponseObserver<HealthCheckRequest, HealthCheckResponse>() {
              @Override
              public void beforeStart(ClientCallStreamObserver<HealthCheckRequest> stream) {
                streams.put(id, stream);
              }

              @Override
              public void onNext(HealthCheckResponse response) {
                tell("status", response.getStatus().name());
              }

              @Override
              public void onError(Throwable failed) {
                tell("ended", io.grpc.Status.fromThrowable(failed).getCode().name());
              }

              @Override
              public void onCompleted() {
                tell("ended", "OK");
              }

              private void tell(String key, String value) {
                Map<String, Object> said = said(ask);
                said.put(key, value);
                say(said);
              }
            });
  }

  private static HealthCheckRequest healthRequest(JsonObject ask) {
    return HealthCheckRequest.newBuilder()
        .setService(text(ask.getAsJsonObject("request"), "service"))
        .build();
  }

  private static Map<String, Object> details(Throwable failed) throws InvalidProtocolBufferException {
    var found = new HashMap<String, Object>();
    Status status = StatusProto.fromThrowable(failed);
    if (status == null) return found;
    for (Any packed : status.getDetailsList()) {
      Descriptor type = TYPES.getDescriptorForTypeUrl(packed.getTypeUrl());
      if (type == null) throw new IllegalStateException("a detail that the contract does not name: " + packed);
      Object spelled;
      if (packed.is(RetryInfo.class)) {
        var delay = packed.unpack(RetryInfo.class).getRetryDelay();
        spelled = Map.of("retry_delay", delay.getSeconds() + delay.getNanos() / 1e9);
      } else {
        spelled = spelled(DynamicMessage.parseFrom(type, packed.getValue()));
      }
      if (found.put(type.getFullName(), spelled) != null) {
        throw new IllegalStateException(type.getFullName() + " stands twice");
      }
    }
    return found;
  }

  private static Map<String, String> texts(Metadata all) {
    var found = new HashMap<String, String>();
    if (all == null) return found;
    for (String key : all.keys()) {
      if (!key.endsWith("-bin")) {
        found.put(key, all.get(Metadata.Key.of(key, Metadata.ASCII_STRING_MARSHALLER)));
      }
    }
    return found;
  }

  private static JsonElement spelled(Message message) throws InvalidProtocolBufferException {
    return JsonParser.parseString(PRINTER.print(message));
  }

  private static Map<String, Object> said(JsonObject ask) {
    var said = new HashMap<String, Object>();
    said.put("id", ask.get("id"));
    return said;
  }

  private static void say(Map<String, Object> said) {
    synchronized (System.out) {
      System.out.println(GSON.toJson(said));
      System.out.flush();
    }
  }

  private static String text(JsonObject from, String key) {
    JsonElement value = from.get(key);
    return value == null || value.isJsonNull() ? null : value.getAsString();
  }

  private static InputStream pem(String text) {
    return new ByteArrayInputStream(text.getBytes(StandardCharsets.UTF_8));
  }
}
