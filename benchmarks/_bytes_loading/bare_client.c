/* What the server can do: a client that only asks and throws away.

   bare_client PORT CONNECTIONS COUNT SIZE      prints the seconds for COUNT objects */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static long asked, done, count;

static void ask(int fd) {
  char text[256];
  if (asked < count) {
    int used = sprintf(text, "GET /b/train/%06ld.bin HTTP/1.1\r\nHost: b\r\n\r\n", asked++);
    if (write(fd, text, used) != used) exit(1);
  }
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  int connections = atoi(argv[2]), poller = epoll_create1(0), yes = 1;
  count = atol(argv[3]);
  long size = atol(argv[4]), *got = calloc(65536, sizeof(long));
  static char block[1 << 17];
  double began = seconds();
  for (int i = 0; i < connections; i++) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (void *)&to, sizeof to)) return 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    ask(fd);
  }
  while (done < count) {
    struct epoll_event events[256];
    int ready = epoll_wait(poller, events, 256, 5000);
    if (ready <= 0) return 1;
    for (int i = 0; i < ready; i++) {
      int fd = events[i].data.fd;
      ssize_t n = read(fd, block, sizeof block);
      if (n <= 0) return 1;
      if (!got[fd]) { /* the header comes whole, in one piece with the begin of the body */
        char *end = memmem(block, n, "\r\n\r\n", 4);
        if (!end) return 1;
        n -= end + 4 - block;
        got[fd] = 1;
      }
      if ((got[fd] += n) == size + 1) {
        got[fd] = 0, done++;
        ask(fd);
      }
    }
  }
  printf("%.3f\n", seconds() - began);
}
