-- The shop's customers and orders of before: they are there when the connector comes.
INSERT INTO customers (name, email, country, note)
SELECT initcap(substr(md5('first' || i), 1, 6)) || ' ' || initcap(substr(md5('last' || i), 1, 8)),
       'Customer' || i || '@Example' || i % 7 || '.com', (ARRAY['DE', 'FR', 'IT', 'PL', 'SE'])[1 + i % 5],
       CASE WHEN i % 10 = 0 THEN (SELECT string_agg(md5(i::text || g), ' ') FROM generate_series(1, 200) g) ELSE '' END
FROM generate_series(1, 2000) AS i;

INSERT INTO orders (customer_id, amount_cents, delivery)
SELECT 1 + i % 2000, 1000 + (i * 7919) % 50000, jsonb_build_object('express', i % 3 = 0, 'days', 1 + i % 5)
FROM generate_series(1, 3000) AS i;

INSERT INTO order_lines
SELECT o.id, l, 'article ' || (o.id * 31 + l) % 500, 1 + (o.id + l) % 4, 100 + (o.id * 17 + l * 13) % 5000
FROM orders o, generate_series(1, 3) AS l;
