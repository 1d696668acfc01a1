-- What the peers of the benchmark sell from: plain tables, without a fence.
CREATE SCHEMA peers;

CREATE TABLE peers.items (
    sku   text   PRIMARY KEY,
    stock bigint NOT NULL CHECK (stock >= 0)
);

CREATE TABLE peers.reservations (
    id         uuid        PRIMARY KEY,
    sku        text        NOT NULL,
    quantity   bigint      NOT NULL CHECK (quantity > 0),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON peers.reservations (sku);
