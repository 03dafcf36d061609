// The peer in Go: nats.go and net/http. Bare, or with FULL as careful as the worker with each message: a JSON
// log line for each invocation, counters, and acknowledgements that the server confirms.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
)

type queueRequest struct {
	Header      http.Header
	Body        []byte
	Method      string
	Path        string
	QueryString string
	Function    string
}

type logLine struct {
	Level    string  `json:"level"`
	Time     string  `json:"time"`
	Message  string  `json:"msg"`
	CallID   string  `json:"call_id"`
	Function string  `json:"function"`
	Status   int     `json:"status"`
	Seconds  float64 `json:"seconds"`
	Bytes    int64   `json:"bytes"`
	Attempt  uint64  `json:"attempt"`
}

type worker struct {
	gateway  string
	full     bool
	client   *http.Client
	lines    *json.Encoder
	writing  sync.Mutex
	counters sync.Map // function and status: *int64
}

func main() {
	inflight, err := strconv.Atoi(os.Getenv("max_inflight"))
	check(err)
	transport := &http.Transport{MaxIdleConns: inflight, MaxIdleConnsPerHost: inflight}
	w := &worker{
		gateway: os.Getenv("gateway_url"),
		full:    os.Getenv("FULL") != "",
		client:  &http.Client{Transport: transport, Timeout: time.Minute},
		lines:   json.NewEncoder(os.Stdout),
	}
	connection, err := nats.Connect("nats://127.0.0.1:" + os.Getenv("nats_port"))
	check(err)
	stream, err := connection.JetStream()
	check(err)
	subscription, err := stream.PullSubscribe("", "", nats.Bind(os.Getenv("nats_stream"), os.Getenv("nats_durable")))
	check(err)
	go w.fetchForever(subscription, inflight)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
}

// fetchForever requests as many messages as are free, once half are; a goroutine for each message.
func (w *worker) fetchForever(subscription *nats.Subscription, inflight int) {
	ended := make(chan struct{}, inflight)
	running := 0
	for {
		messages, err := subscription.Fetch(inflight-running, nats.MaxWait(5*time.Second))
		if err != nil && !errors.Is(err, nats.ErrTimeout) {
			log.Fatal(err)
		}
		for _, message := range messages {
			running++
			go func(message *nats.Msg) {
				w.process(message)
				ended <- struct{}{}
			}(message)
		}
		for running > inflight/2 {
			<-ended
			running--
		}
		for len(ended) > 0 {
			<-ended
			running--
		}
	}
}

func (w *worker) process(message *nats.Msg) {
	var asked queueRequest
	check(json.Unmarshal(message.Data, &asked))
	begun := time.Now()
	status, size := w.invoke(&asked)
	if status != http.StatusOK {
		log.Fatalf("the function answered %d", status)
	}
	if !w.full {
		check(message.Ack())
		return
	}
	w.tell(message, &asked, status, size, time.Since(begun))
	check(message.AckSync())
}

func (w *worker) invoke(asked *queueRequest) (status int, size int64) {
	url := w.gateway + "/function/" + asked.Function + asked.Path
	if asked.QueryString != "" {
		url += "?" + asked.QueryString
	}
	request, err := http.NewRequest(asked.Method, url, bytes.NewReader(asked.Body))
	check(err)
	for name, values := range asked.Header {
		request.Header[name] = values
	}
	response, err := w.client.Do(request)
	check(err)
	defer response.Body.Close()
	size, err = io.Copy(io.Discard, response.Body)
	check(err)
	return response.StatusCode, size
}

func (w *worker) tell(message *nats.Msg, asked *queueRequest, status int, size int64, took time.Duration) {
	key := fmt.Sprintf("%s %d", asked.Function, status)
	counter, _ := w.counters.LoadOrStore(key, new(int64))
	atomic.AddInt64(counter.(*int64), 1)
	metadata, err := message.Metadata()
	check(err)
	now := time.Now().UTC().Format(time.RFC3339Nano)
	line := logLine{"info", now, "Invocation ended", asked.Header.Get("X-Call-Id"), asked.Function, status, took.Seconds(), size, metadata.NumDelivered}
	w.writing.Lock()
	defer w.writing.Unlock()
	check(w.lines.Encode(line))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
