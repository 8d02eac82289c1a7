/* An S3 server for one benchmark: objects of one size out of one mapped file, each answer after a given time.

   s3_server FILE COUNT SIZE LATENCY_US      prints http://127.0.0.1:PORT, and serves until it is killed

   Object i is train/%06d.bin and holds bytes [i * SIZE, (i + 1) * SIZE) of FILE. It knows GET (with Range), HEAD, and
   ListObjectsV2 of one bucket, path style, keep-alive; signatures are not checked. One thread: it never waits for
   anything but epoll, so that as little as possible of a small machine goes to the server. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MOST_FDS 4096
#define REQUEST_BYTES 16384
#define PAGE_KEYS 1000

typedef struct {
  char in[REQUEST_BYTES];
  size_t have;
  int waiting, closing; /* for its answer's time; after what is being sent */
  char *head;           /* allocated */
  size_t head_left, body_left;
  const char *head_at, *body_at;
} Connection;

typedef struct {
  uint64_t due;
  int fd;
  Connection *connection;
} Wait;

static Connection *connections[MOST_FDS];
static Wait waits[MOST_FDS]; /* all answers wait equally long, so this is a queue */
static unsigned first_wait, last_wait;
static int poller;
static const char *objects;
static long count, size;
static uint64_t latency_ns;

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

static void drop(int fd) {
  Connection *c = connections[fd];
  connections[fd] = NULL;
  close(fd);
  free(c->head);
  if (c->waiting) c->closing = 2; /* freed by the queue */
  else free(c);
}

static void watch(int fd, int operation, uint32_t events) {
  struct epoll_event event = {.events = events, .data.fd = fd};
  epoll_ctl(poller, operation, fd, &event);
}

/* Send what is left; 0 when all is sent, 1 when the socket is full, -1 when the connection has ended. */
static int send_more(int fd, Connection *c) {
  while (c->head_left + c->body_left) {
    struct iovec parts[2] = {{(void *)c->head_at, c->head_left}, {(void *)c->body_at, c->body_left}};
    ssize_t sent = writev(fd, parts, 2);
    if (sent < 0) return errno == EAGAIN ? 1 : -1;
    size_t of_head = (size_t)sent < c->head_left ? (size_t)sent : c->head_left;
    c->head_at += of_head, c->head_left -= of_head;
    c->body_at += sent - of_head, c->body_left -= sent - of_head;
  }
  free(c->head);
  c->head = NULL;
  return 0;
}

static void answer(Connection *c, int status, const char *extra, char *text, const char *body, size_t body_bytes,
                   int only_head) {
  size_t length = text ? strlen(text) : body_bytes;
  char *head = malloc(512 + strlen(extra) + (text ? length : 0));
  int used = sprintf(head,
                     "HTTP/1.1 %d %s\r\nContent-Length: %zu\r\nContent-Type: %s\r\n"
                     "Last-Modified: Sun, 01 Nov 2026 00:00:00 GMT\r\nDate: Sun, 01 Nov 2026 00:00:00 GMT\r\n"
                     "Server: bench\r\nx-amz-request-id: 0\r\n%s\r\n",
                     status, status < 300 ? "OK" : "No", length, text ? "application/xml" : "application/octet-stream",
                     extra);
  c->head = head, c->head_at = head, c->head_left = used;
  c->body_at = body, c->body_left = only_head || text ? 0 : body_bytes;
  if (text && !only_head) memcpy(head + used, text, length), c->head_left += length;
  free(text);
}

static void list(Connection *c, const char *query) {
  long from = 0, keys = PAGE_KEYS;
  const char *at;
  if ((at = strstr(query, "continuation-token="))) from = atol(at + 19);
  if ((at = strstr(query, "max-keys="))) keys = atol(at + 9) < PAGE_KEYS ? atol(at + 9) : PAGE_KEYS;
  long to = from + keys < count ? from + keys : count;
  char *text = malloc(1024 + (to - from) * 320), *end = text;
  end += sprintf(end,
                 "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult "
                 "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name><Prefix>train/</Prefix>"
                 "<KeyCount>%ld</KeyCount><MaxKeys>%ld</MaxKeys><IsTruncated>%s</IsTruncated>",
                 to - from, keys, to < count ? "true" : "false");
  if (to < count) end += sprintf(end, "<NextContinuationToken>%ld</NextContinuationToken>", to);
  for (long i = from; i < to; i++)
    end += sprintf(end,
                   "<Contents><Key>train/%06ld.bin</Key><LastModified>2026-11-01T00:00:00.000Z</LastModified>"
                   "<ETag>&quot;%032lx&quot;</ETag><Size>%ld</Size><StorageClass>STANDARD</StorageClass></Contents>",
                   i, i + 1, size);
  strcpy(end, "</ListBucketResult>");
  answer(c, 200, "", text, NULL, 0, 0);
}

static void respond(Connection *c, size_t request_bytes) {
  char method[8] = "", target[2048] = "";
  sscanf(c->in, "%7s %2047s", method, target);
  c->in[request_bytes - 1] = 0;
  int only_head = !strcmp(method, "HEAD");
  char *key = strstr(target, "/train/"), *query = strchr(target, '?');
  if (strcasestr(c->in, "\nconnection: close")) c->closing = 1;
  if (query && (!key || key > query)) {
    if (strstr(query, "location"))
      answer(c, 200, "", strdup("<LocationConstraint>us-east-1</LocationConstraint>"), NULL, 0, only_head);
    else list(c, query);
    return;
  }
  long index = key ? atol(key + 7) : -1;
  int named = key && strlen(key) > 13 && !strncmp(key + 13, ".bin", 4);
  if (key && (!named || index < 0 || index >= count)) {
    answer(c, 404, "", strdup("<Error><Code>NoSuchKey</Code></Error>"), NULL, 0, only_head);
    return;
  }
  if (!key) { /* the bucket itself */
    answer(c, 200, "", strdup(""), NULL, 0, only_head);
    return;
  }
  char extra[256];
  int used = sprintf(extra, "ETag: \"%032lx\"\r\nAccept-Ranges: bytes\r\n", index + 1);
  long begin = 0, end = size - 1;
  char *range = strcasestr(c->in, "\nrange: bytes=");
  if (range) {
    if (sscanf(range + 14, "%ld-%ld", &begin, &end) < 2 || end >= size) end = size - 1;
    sprintf(extra + used, "Content-Range: bytes %ld-%ld/%ld\r\n", begin, end, size);
  }
  answer(c, range ? 206 : 200, extra, NULL, objects + index * size + begin, end - begin + 1, only_head);
}

/* If a whole request is there, let its time begin. */
static void begin_wait(int fd, Connection *c) {
  if (c->waiting || c->head || !memmem(c->in, c->have, "\r\n\r\n", 4)) return;
  c->waiting = 1;
  waits[last_wait++ % MOST_FDS] = (Wait){now_ns() + latency_ns, fd, c};
}

static void end_wait(int fd, Connection *c) {
  char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
  size_t request_bytes = end + 4 - c->in;
  respond(c, request_bytes);
  memmove(c->in, c->in + request_bytes, c->have -= request_bytes);
  int left = send_more(fd, c);
  if (left == 1) watch(fd, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
  else if (left < 0 || c->closing) drop(fd);
  else begin_wait(fd, c);
}

static void receive(int fd, Connection *c, uint32_t events) {
  if (events & EPOLLOUT && c->head) {
    int left = send_more(fd, c);
    if (left < 0 || (left == 0 && c->closing)) {
      drop(fd);
      return;
    }
    if (left == 0) {
      watch(fd, EPOLL_CTL_MOD, EPOLLIN);
      begin_wait(fd, c);
    }
  }
  if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
  ssize_t got = read(fd, c->in + c->have, REQUEST_BYTES - c->have);
  if (got <= 0) {
    if (got < 0 && errno == EAGAIN) return;
    drop(fd);
    return;
  }
  c->have += got;
  begin_wait(fd, c);
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  count = atol(argv[2]), size = atol(argv[3]), latency_ns = (uint64_t)(atof(argv[4]) * 1000);
  int file = open(argv[1], O_RDONLY), listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
  objects = mmap(NULL, count * size, PROT_READ, MAP_SHARED | MAP_POPULATE, file, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  if (file < 0 || objects == MAP_FAILED || bind(listener, (void *)&address, length) || listen(listener, 1024)) {
    perror("s3_server");
    return 1;
  }
  getsockname(listener, (void *)&address, &length);
  signal(SIGPIPE, SIG_IGN);
  printf("http://127.0.0.1:%d\n", ntohs(address.sin_port));
  fflush(stdout);
  poller = epoll_create1(0);
  watch(listener, EPOLL_CTL_ADD, EPOLLIN);
  struct epoll_event events[256];
  for (;;) {
    struct timespec rest = {1, 0};
    if (first_wait != last_wait) {
      uint64_t now = now_ns(), due = waits[first_wait % MOST_FDS].due, left = due > now ? due - now : 0;
      rest = (struct timespec){left / 1000000000u, left % 1000000000u};
    }
    int ready = epoll_pwait2(poller, events, 256, &rest, NULL);
    for (int i = 0; i < ready; i++) {
      int fd = events[i].data.fd;
      if (fd != listener) {
        if (connections[fd]) receive(fd, connections[fd], events[i].events);
        continue;
      }
      int made = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
      if (made < 0) continue;
      if (made >= MOST_FDS) {
        close(made);
        continue;
      }
      setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
      connections[made] = calloc(1, sizeof(Connection));
      watch(made, EPOLL_CTL_ADD, EPOLLIN);
    }
    uint64_t now = now_ns();
    while (first_wait != last_wait && waits[first_wait % MOST_FDS].due <= now) {
      Wait wait = waits[first_wait++ % MOST_FDS];
      wait.connection->waiting = 0;
      if (wait.connection->closing == 2) free(wait.connection);
      else end_wait(wait.fd, wait.connection);
    }
  }
}
