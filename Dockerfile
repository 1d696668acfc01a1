FROM golang:1.26.8-bookworm AS build
WORKDIR /src
# The modules are a layer of their own: they change less often than the code.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -o /fencepost ./cmd/fencepost

# Nothing but the program and the certificates that it may need to reach a server over TLS. There is no shell and no HTTP
# client in here, so there is no HEALTHCHECK either: whatever routes requests asks /readyz over the network, where it sees
# what clients see, and a process that has died is started again by its restart policy.
FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /fencepost /fencepost
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/fencepost"]
CMD ["serve"]
