-- Some volumes.
local volumes = {}
for name in pairs(args.names) do
  if zfs.exists(name) then
    volumes[name] = describe(name)
  end
end
return { volumes = volumes }
