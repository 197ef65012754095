-- A guest that makes code without end: fresh functions, each hot enough to be compiled, used and dropped.
local total = 0
for round = 1, 3000 do
    local f = assert(loadstring(string.format([[
        local n = ...
        local s = %d
        for i = 1, n do s = (s * %d + i) %% %d end
        return s]], round, round % 89 + 3, round % 9973 + 20011)))
    local got, s = f(400), round
    total = (total * 31 + got) % 1000000007
    -- The same by hand, where the interpreter has not seen a loop yet.
    if round % 100 == 0 then
        for i = 1, 400 do s = (s * (round % 89 + 3) + i) % (round % 9973 + 20011) end
        assert(s == got, round)
        jit.flush()
    end
end
print("generate", total)
