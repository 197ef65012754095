-- A few hundred thousand rows: inserted, indexed, changed, joined, checked.
PRAGMA journal_mode = WAL;
CREATE TABLE t (id INTEGER PRIMARY KEY, k INTEGER, v REAL, s TEXT);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000)
INSERT INTO t SELECT i, (i * 7919) % 100003, i / 7.0, printf('%08x-%d', i * 2654435761 % 4294967296, i) FROM n;
COMMIT;
CREATE INDEX tk ON t(k);
CREATE INDEX ts ON t(s);
PRAGMA integrity_check;
SELECT count(*), sum(k), total(v), min(s), max(s) FROM t;
UPDATE t SET v = v * 1.25, s = s || '!' WHERE k % 3 = 0;
DELETE FROM t WHERE k % 11 = 0;
SELECT count(*), sum(k), printf('%.10f', avg(v)) FROM t;
SELECT k % 10 AS g, count(*), printf('%.6f', avg(v)), group_concat(substr(s, 1, 2)) FROM
    (SELECT * FROM t ORDER BY s LIMIT 1000) GROUP BY g ORDER BY g;
SELECT count(*) FROM t a JOIN t b ON a.k = b.k AND a.id < b.id;
SELECT count(*) FROM t WHERE s LIKE '%ab%' OR s GLOB '*7[0-9]f*';
VACUUM;
PRAGMA integrity_check;
