// grpc-go, as a Go team would use it: generated stubs, status.FromError and its Details.
//
// Talks to line_client.py in lines of JSON: {id, op, …} in, {id, …} out.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"license-gateway.test/foreign/licensing"
)

type settings struct {
	Address string
	Retries json.RawMessage
	Shown   *shown
}

// What a client shows: whom it trusts, its certificate with the key, its token.
type shown struct{ CA, Certificate, Key, Token string }

type ask struct {
	ID        int
	Op        string
	Request   json.RawMessage
	TimeoutMS int64 `json:"timeout_ms"`
	Path      string
	Stream    int
}

type line map[string]any

var (
	write   sync.Mutex
	streams sync.Map // id of a watch → how it is cancelled
)

func main() {
	var with settings
	must(json.Unmarshal([]byte(os.Args[1]), &with))
	connection, err := grpc.NewClient(with.Address, options(with)...)
	must(err)
	calls := client{
		connection: connection,
		licensing:  licensing.NewLicensingServiceClient(connection),
		health:     grpc_health_v1.NewHealthClient(connection),
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var asked ask
		must(json.Unmarshal(lines.Bytes(), &asked))
		// Kept before the next line is read, which may cancel it.
		ctx, cancel := context.WithCancel(context.Background())
		streams.Store(asked.ID, cancel)
		go calls.answer(ctx, asked)
	}
}

func options(with settings) []grpc.DialOption {
	all := []grpc.DialOption{grpc.WithNoProxy(), grpc.WithTransportCredentials(insecure.NewCredentials())}
	if len(with.Retries) > 0 && string(with.Retries) != "null" {
		all = append(all, grpc.WithDefaultServiceConfig(string(with.Retries)))
	}
	if with.Shown == nil {
		return all
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(with.Shown.CA))
	config := &tls.Config{RootCAs: roots}
	if with.Shown.Certificate != "" {
		pair, err := tls.X509KeyPair([]byte(with.Shown.Certificate), []byte(with.Shown.Key))
		must(err)
		config.Certificates = []tls.Certificate{pair}
	}
	all = append(all, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if with.Shown.Token != "" {
		all = append(all, grpc.WithPerRPCCredentials(bearer(with.Shown.Token)))
	}
	return all
}

type bearer string

func (token bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(token)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

type client struct {
	connection *grpc.ClientConn
	licensing  licensing.LicensingServiceClient
	health     grpc_health_v1.HealthClient
}

func (calls client) answer(ctx context.Context, asked ask) {
	if asked.TimeoutMS > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(asked.TimeoutMS)*time.Millisecond)
		defer cancel()
	}
	var trailers metadata.MD
	trailer := grpc.Trailer(&trailers)
	var response proto.Message
	var err error
	switch asked.Op {
	case "unassign":
		response, err = calls.licensing.UnassignLicenses(ctx, read(asked, &licensing.UnassignLicensesRequest{}), trailer)
	case "list_services":
		response, err = calls.licensing.ListServices(ctx, &licensing.ListServicesRequest{}, trailer)
	case "health_check":
		response, err = calls.health.Check(ctx, read(asked, &grpc_health_v1.HealthCheckRequest{}), trailer)
	case "health_list":
		response, err = calls.health.List(ctx, &grpc_health_v1.HealthListRequest{}, trailer)
	case "call_unknown":
		response = &emptypb.Empty{}
		err = calls.connection.Invoke(ctx, asked.Path, &emptypb.Empty{}, response, trailer)
	case "health_watch":
		calls.watch(ctx, asked)
		return
	case "cancel":
		if cancel, found := streams.Load(asked.Stream); found {
			cancel.(context.CancelFunc)()
		}
		return
	default:
		log.Fatalf("an op that this client does not know: %s", asked.Op)
	}
	said := line{"id": asked.ID, "trailers": texts(trailers)}
	if err == nil {
		said["code"], said["response"] = "OK", spelled(response)
	} else {
		failed, _ := status.FromError(err)
		said["code"], said["message"], said["details"] = name(failed), failed.Message(), details(failed)
	}
	say(said)
}

func (calls client) watch(ctx context.Context, asked ask) {
	stream, err := calls.health.Watch(ctx, read(asked, &grpc_health_v1.HealthCheckRequest{}))
	for err == nil {
		var message *grpc_health_v1.HealthCheckResponse
		if message, err = stream.Recv(); err == nil {
			say(line{"id": asked.ID, "status": message.GetStatus().String()})
		}
	}
	failed, _ := status.FromError(err)
	say(line{"id": asked.ID, "ended": name(failed)})
}

func read[M proto.Message](asked ask, message M) M {
	must(protojson.Unmarshal(asked.Request, message))
	return message
}

// As grpc spells it everywhere but in Go.
func name(failed *status.Status) string { return code.Code(failed.Code()).String() }

func details(failed *status.Status) line {
	found := line{}
	for _, detail := range failed.Details() {
		message, readable := detail.(proto.Message)
		if !readable {
			log.Fatalf("a detail that the contract does not name: %v", detail)
		}
		name := string(message.ProtoReflect().Descriptor().FullName())
		if _, twice := found[name]; twice {
			log.Fatalf("%s stands twice", name)
		}
		if retry, is := message.(*errdetails.RetryInfo); is {
			found[name] = line{"retry_delay": retry.GetRetryDelay().AsDuration().Seconds()}
		} else {
			found[name] = spelled(message)
		}
	}
	return found
}

func texts(all metadata.MD) map[string]string {
	found := map[string]string{}
	for key, values := range all {
		if !strings.HasSuffix(key, "-bin") {
			found[key] = strings.Join(values, ", ")
		}
	}
	return found
}

func spelled(message proto.Message) json.RawMessage {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(message)
	must(err)
	return text
}

func say(said line) {
	text, err := json.Marshal(said)
	must(err)
	write.Lock()
	defer write.Unlock()
	_, err = os.Stdout.Write(append(text, '\n'))
	must(err)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
