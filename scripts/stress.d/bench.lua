-- Programs that a JIT turns into loops of floating-point, integer, table and string code. Everything they
-- print is exact, so that it can be compared between machines.
local quick = ... == "quick"
local function size(n) return quick and math.max(1, math.floor(n / 20)) or n end

local function nbody(steps)
    local sqrt = math.sqrt
    local b = {
        {0, 0, 0, 0, 0, 0, 39.4784176},
        {4.8414314, -1.1603200, -0.1036220, 0.6063263, 2.8119868, -0.0252183, 0.0376937},
        {8.3433667, 4.1247985, -0.4035234, -1.0107743, 1.8256623, 0.0084157, 0.0112863},
        {12.894369, -15.111151, -0.2233075, 1.0827910, 0.8687130, -0.0108326, 0.0017237},
        {15.379697, -25.919314, 0.1792587, 0.9790907, 0.5946989, -0.0347559, 0.0020336},
    }
    for _ = 1, steps do
        for i = 1, #b do
            local p = b[i]
            for j = i + 1, #b do
                local q = b[j]
                local dx, dy, dz = p[1] - q[1], p[2] - q[2], p[3] - q[3]
                local d2 = dx * dx + dy * dy + dz * dz
                local mag = 0.001 / (d2 * sqrt(d2))
                p[4], p[5], p[6] = p[4] - dx * q[7] * mag, p[5] - dy * q[7] * mag, p[6] - dz * q[7] * mag
                q[4], q[5], q[6] = q[4] + dx * p[7] * mag, q[5] + dy * p[7] * mag, q[6] + dz * p[7] * mag
            end
        end
        for i = 1, #b do
            local p = b[i]
            p[1], p[2], p[3] = p[1] + 0.001 * p[4], p[2] + 0.001 * p[5], p[3] + 0.001 * p[6]
        end
    end
    return string.format("%.17g %.17g", b[1][1], b[5][6])
end

local function mandelbrot(n)
    local inside, total = 0, 0
    for y = 0, n - 1 do
        local ci = 2 * y / n - 1
        for x = 0, n - 1 do
            local cr, zr, zi, i = 2 * x / n - 1.5, 0, 0, 0
            while i < 100 and zr * zr + zi * zi < 4 do
                zr, zi = zr * zr - zi * zi + cr, 2 * zr * zi + ci
                i = i + 1
            end
            total = total + i
            if i == 100 then inside = inside + 1 end
        end
    end
    return inside .. " " .. total
end

local function sieve(n)
    local composite, count = {}, 0
    for i = 2, n do
        if not composite[i] then
            count = count + 1
            for j = i * i, n, i do composite[j] = true end
        end
    end
    return count
end

local function spectral(n)
    local function a(i, j) return 1 / ((i + j) * (i + j + 1) / 2 + i + 1) end
    local u, v, t = {}, {}, {}
    local function times(x, y, f)
        for i = 0, n - 1 do
            local s = 0
            for j = 0, n - 1 do s = s + f(i, j) * x[j] end
            y[i] = s
        end
    end
    local function back(i, j) return a(j, i) end
    for i = 0, n - 1 do u[i] = 1 end
    for _ = 1, 10 do
        times(u, t, a) times(t, v, back)
        times(v, t, a) times(t, u, back)
    end
    local vbv, vv = 0, 0
    for i = 0, n - 1 do vbv, vv = vbv + u[i] * v[i], vv + v[i] * v[i] end
    return string.format("%.17g", math.sqrt(vbv / vv))
end

local function fft(n)
    local re, im, x = {}, {}, 42
    for i = 0, n - 1 do
        x = (x * 16807) % 2147483647
        re[i], im[i] = x / 2147483647, 0
    end
    local function run(dir)
        local j = 0
        for i = 0, n - 2 do
            if i < j then re[i], re[j], im[i], im[j] = re[j], re[i], im[j], im[i] end
            local k = n / 2
            while k <= j do j, k = j - k, k / 2 end
            j = j + k
        end
        local half = 1
        while half < n do
            -- The angle's sine by a series: the C library's may differ from processor to processor.
            local h = dir * 3.14159265358979323846 / half / 2
            local s, term = 0, h
            for k = 1, 12 do s, term = s + term, -term * h * h / ((2 * k) * (2 * k + 1)) end
            local wr, wi = -2 * s * s, 2 * s * math.sqrt(math.max(0, 1 - s * s))
            local ur, ui = 1, 0
            for a = 0, half - 1 do
                for b = a, n - 1, 2 * half do
                    local c = b + half
                    local tr, ti = ur * re[c] - ui * im[c], ur * im[c] + ui * re[c]
                    re[c], im[c] = re[b] - tr, im[b] - ti
                    re[b], im[b] = re[b] + tr, im[b] + ti
                end
                ur, ui = ur + wr * ur - wi * ui, ui + wr * ui + wi * ur
            end
            half = half * 2
        end
    end
    run(1) run(-1)
    local worst, y = 0, 42
    for i = 0, n - 1 do
        y = (y * 16807) % 2147483647
        worst = math.max(worst, math.abs(re[i] / n - y / 2147483647))
    end
    assert(worst < 1e-9, "fft and back differ by " .. worst)
    return string.format("%.17g", re[1])
end

local function fib(n) return n < 2 and n or fib(n - 1) + fib(n - 2) end

local function strings(n)
    local t, h = {}, 7
    for i = 1, n do
        local s = string.format("%d:%x:%5.2f", i, i * 31, i / 3)
        t[#t + 1] = s:rep(2):upper():gsub("%d%d", "<%0>")
        if #t == 100 then
            local all = table.concat(t, ",")
            for k = 1, #all, 7 do h = (h * 31 + all:byte(k)) % 1000000007 end
            t = {}
        end
    end
    return h
end

local function sorting(n)
    local t, x = {}, 1
    for i = 1, n do
        x = (x * 16807) % 2147483647
        t[i] = x
    end
    table.sort(t)
    for i = 2, n do assert(t[i - 1] <= t[i]) end
    return string.format("%.0f %.0f", t[1], t[n])
end

print("nbody", nbody(size(400000)))
print("mandelbrot", mandelbrot(size(600)))
print("sieve", sieve(size(2000000)))
print("spectral", spectral(size(400)))
print("fft", fft(quick and 4096 or 131072))
print("fib", fib(quick and 22 or 30))
print("strings", strings(size(200000)))
print("sorting", sorting(size(300000)))
